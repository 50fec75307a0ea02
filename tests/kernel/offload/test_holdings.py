"""Every device storage is found once, and what is not device memory is named."""

from __future__ import annotations

import gc
import warnings

import pytest

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.kernel.offload import scan

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def nothing_left_of_others():
    gc.collect()


def ids() -> set[int]:
    return {s._cdata for s in scan("simulated").storages}


def identity(tensor) -> int:
    return tensor.untyped_storage()._cdata


def test_views_parameters_subclasses_and_bare_storages_count_once():
    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("a scan must not run the user's code")

    before = scan("simulated")
    base = torch.randn(1000)
    views = [base[i:] for i in range(10)]
    parameter = torch.nn.Parameter(torch.randn(1000))
    mine = torch.randn(1000).as_subclass(Mine)
    bare = torch.UntypedStorage(4000)
    typed = torch.TypedStorage(
        wrap_storage=torch.UntypedStorage(4000), dtype=torch.float32, _internal=True
    )
    after = scan("simulated")
    assert after.used_bytes - before.used_bytes == 5 * 4000
    assert len(after.storages) - len(before.storages) == 5
    assert len(views) == 10
    del mine, parameter, bare, typed


def test_grads_never_read_from_python_and_tensors_saved_for_backward_are_found():
    weight = torch.randn(500, 500, requires_grad=True)
    (weight * 2).sum().backward()
    middle = (weight @ torch.randn(500, 500)).relu()
    loss = middle.exp().sum()
    saved = identity(middle)
    del middle
    gc.collect()
    found = ids()
    assert identity(weight.grad) in found
    assert saved in found
    loss.backward()
    assert saved not in ids()


def test_custom_functions_saved_tensors_are_found_and_their_hooks_are_not_run():
    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x * 2
            ctx.save_for_backward(y)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.saved_tensors[0]

    x = torch.randn(3000, requires_grad=True)
    used = scan("simulated").used_bytes
    out = Keep.apply(x)
    assert scan("simulated").used_bytes - used == 2 * 12_000
    out.sum().backward()

    def refuse(_):
        raise AssertionError("a scan must not unpack")

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), refuse):
        loss = x.exp().sum()
    scan("simulated")
    del loss


def test_classes_of_the_users_that_look_like_torchs_or_cannot_be_hashed_hide_nothing():
    class Named(type):
        def __eq__(cls, other):
            raise AssertionError("a scan must not run the user's code")

        __hash__ = None

    class Unhashable(metaclass=Named):
        pass

    class Flow:
        next_functions = "none"

    tensor = torch.ones(1000)
    kept = [Unhashable(), Flow(), [tensor]]
    assert identity(tensor) in ids()
    del kept


def test_script_modules_parameters_are_found():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.script(torch.nn.Linear(100, 100))
    gc.collect()
    found = ids()
    assert {identity(p) for p in module.parameters()} <= found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layouts_without_a_storage_count_by_their_parts_or_are_named():
    dense = torch.eye(100)
    used = scan("simulated").used_bytes
    sparse = dense.to_sparse()
    parts = sparse._indices().numel() * 8 + sparse._values().numel() * 4
    assert scan("simulated").used_bytes - used == parts
    compressed = dense.to_sparse_csr()
    assert identity(compressed.values()) in ids()
    opaque = dense.to_mkldnn()
    reasons = {s.reason: s.nbytes for s in scan("simulated").skipped}
    assert reasons["in oneDNN's own format, which has no storage"] >= 40_000
    del opaque


def test_wrapper_tensors_count_by_what_they_wrap():
    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            raise AssertionError("a scan must not run the user's code")

    used = scan("simulated").used_bytes
    wrapper = Wrapper(torch.ones(1000))
    assert scan("simulated").used_bytes - used == 4000
    assert identity(wrapper.inner) in ids()


def test_meta_fake_and_empty_tensors_take_nothing():
    from torch._subclasses import FakeTensorMode

    used = scan("simulated").used_bytes
    meta = torch.empty(10**6, device="meta")
    with FakeTensorMode():
        fake = torch.empty(10**6)
    empty = torch.empty(0)
    lazy = torch.nn.LazyLinear(3)
    assert scan("simulated").used_bytes == used
    del meta, fake, empty, lazy


def test_host_memory_on_a_simulated_gpu_is_skipped_and_named(tmp_path):
    np = pytest.importorskip("numpy")
    path = tmp_path / "mapped"
    path.write_bytes(bytes(8000))
    held = [
        torch.from_numpy(np.zeros(1000, dtype=np.float32)),
        torch.zeros(2000).share_memory_(),
        torch.from_file(str(path), shared=True, size=2000),
    ]
    taken = torch.ones(3000)
    assert identity(taken) in ids()
    array = taken.numpy()
    holdings = scan("simulated")
    assert not {identity(t) for t in (*held, taken)} & {s._cdata for s in holdings.storages}
    named = {(s.reason, s.nbytes, s.on_device) for s in holdings.skipped}
    assert ("shared with numpy or owned by another library", 4000, False) in named
    assert ("shared with numpy or owned by another library", 12_000, False) in named
    assert ("in shared memory", 8000, False) in named
    assert ("mapped from a file", 8000, False) in named
    assert array.sum() == 3000


def test_frozen_objects_are_found():
    tensor = torch.ones(1000)
    gc.freeze()
    try:
        assert identity(tensor) in ids()
    finally:
        gc.unfreeze()


def test_a_scan_warns_of_nothing_and_leaves_the_collector_alone():
    leaf = torch.ones(3, requires_grad=True)
    inner = leaf * 2
    state = (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan("simulated")
    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), gc.get_debug()) == state
    assert inner.sum() == 6


def test_an_unknown_device_is_refused():
    with pytest.raises(BadInputError, match="tpu"):
        scan("tpu")


def test_a_cuda_scan_without_cuda_finds_nothing():
    kept = torch.ones(10)
    assert scan("cuda").used_bytes == 0
    del kept
