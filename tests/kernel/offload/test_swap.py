"""Suspended tensors stay the same objects, with the same values, and keep what is written."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import os
import pickle
import threading

import pytest

from jupyter_gpu_predict.kernel.offload import Offloader, scan

torch = pytest.importorskip("torch")


def resident_bytes() -> int:
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) * 1024


@pytest.fixture
def offloader(tmp_path):
    made = Offloader("simulated", str(tmp_path / "spill"))
    yield made
    made.restore()


def cycle(offloader):
    offloader.suspend()
    offloader.restore()


def test_identity_views_and_aliases_survive_both_ways(offloader):
    base = torch.randn(100, 50)
    view, transposed, alias = base[10:20], base.t(), base.view(-1)
    expected = base.tolist()
    identities = [id(x) for x in (base, view, transposed, alias)]
    before = (base.untyped_storage()._cdata, base.untyped_storage().nbytes(), base.device)
    for step in (offloader.suspend, offloader.restore):
        step()
        assert base.tolist() == expected
        assert view.tolist() == expected[10:20]
        assert torch.equal(transposed, base.t())
        assert alias.data_ptr() == base.data_ptr()
        assert [id(x) for x in (base, view, transposed, alias)] == identities
        storage = base.untyped_storage()
        assert (storage._cdata, storage.nbytes(), storage.device) == before
    assert base.untyped_storage().resizable()
    base.untyped_storage().resize_(40_000)
    assert base.untyped_storage().nbytes() == 40_000


def test_writes_while_suspended_are_kept(offloader):
    base = torch.zeros(1000, 10)
    view = base[100:200]
    report = offloader.suspend()
    assert report.freed_bytes >= 40_000
    assert offloader.state == "suspended"
    view.fill_(7)
    base[0, 0] = 3
    base.t()[5].add_(1)
    expected = base.clone()
    offloader.restore()
    assert offloader.state == "resident"
    assert torch.equal(base, expected)
    assert base.sum().item() == 100 * 10 * 7 + 3 + 1000


def test_suspended_tensors_can_be_pickled_copied_saved_and_computed_with(offloader):
    base = torch.randn(64, 64)
    plain = torch.tensor(base.tolist())
    offloader.suspend()
    file = io.BytesIO()
    torch.save(base, file)
    file.seek(0)
    assert torch.equal(torch.load(file), plain)
    assert torch.equal(pickle.loads(pickle.dumps(base)), plain)
    assert torch.equal(copy.deepcopy(base), plain)
    assert torch.equal(base @ base, plain @ plain)


def train(model, optimizer, seed, between=lambda: None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 64, generator=generator)
    optimizer.zero_grad()
    loss = (model(x) ** 2).mean()
    between()
    loss.backward()
    between()
    optimizer.step()


def make_tied():
    torch.manual_seed(1)
    model = torch.nn.ModuleDict(
        {"in": torch.nn.Embedding(50, 16), "out": torch.nn.Linear(16, 50, bias=False)}
    )
    model["out"].weight = model["in"].weight
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train_tied(model, optimizer, seed, between=lambda: None):
    tokens = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model["out"](model["in"](tokens)), tokens)
    between()
    loss.backward()
    optimizer.step()


def test_tied_weights_stay_tied_and_train_bit_identically(offloader):
    plain, plain_optimizer = make_tied()
    moved, moved_optimizer = make_tied()
    for seed in range(4):
        train_tied(plain, plain_optimizer, seed)
        train_tied(moved, moved_optimizer, seed, lambda: cycle(offloader))
    assert moved["in"].weight is moved["out"].weight
    assert torch.equal(plain["in"].weight, moved["in"].weight)


def test_training_is_bit_identical_also_mid_graph_and_while_suspended(offloader):
    plain, plain_optimizer = make_plain()
    moved, moved_optimizer = make_plain()
    for seed in range(4):
        train(plain, plain_optimizer, seed)
        train(moved, moved_optimizer, seed, lambda: cycle(offloader))
    assert same_state(plain, plain_optimizer, moved, moved_optimizer)
    offloader.suspend()
    for seed in range(4, 7):
        train(plain, plain_optimizer, seed)
        train(moved, moved_optimizer, seed)
    assert same_state(plain, plain_optimizer, moved, moved_optimizer)
    offloader.restore()
    train(plain, plain_optimizer, 7)
    train(moved, moved_optimizer, 7)
    assert same_state(plain, plain_optimizer, moved, moved_optimizer)


def make_plain():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.LayerNorm(128), torch.nn.Linear(128, 64)
    )
    return model, torch.optim.Adam(model.parameters())


def same_state(a, a_optimizer, b, b_optimizer) -> bool:
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    states = [(a_optimizer.state[p], b_optimizer.state[q]) for p, q in pairs]
    return (
        all(torch.equal(p, q) for p, q in pairs)
        and all(torch.equal(p.grad, q.grad) for p, q in pairs)
        and all(torch.equal(s[k], t[k]) for s, t in states for k in s)
    )


class Slotted:
    __slots__ = ("tensor",)


def test_tensors_in_slots_closures_and_containers_are_found(offloader):
    slotted = Slotted()
    slotted.tensor = torch.full((1000,), 1.0)

    held = torch.full((1000,), 2.0)

    def closure():
        return held

    nested = {"a": [(torch.full((1000,), 3.0),)]}

    def generate():
        inside = torch.full((1000,), 4.0)
        yield
        yield inside

    generator = generate()
    next(generator)
    report = offloader.suspend()
    assert report.storages >= 4
    for tensor in (slotted.tensor, closure(), nested["a"][0][0]):
        assert not tensor.untyped_storage().resizable()
    assert slotted.tensor[0] == 1
    assert closure()[-1] == 2
    assert nested["a"][0][0][5] == 3
    assert next(generator).sum() == 4000


def test_resident_memory_falls_and_comes_back(offloader):
    small = [torch.ones(10_000) for _ in range(2_500)]
    large = torch.ones(25_000_000)
    full = resident_bytes()
    offloader.suspend()
    gone = resident_bytes()
    assert full - gone > 150_000_000
    offloader.restore()
    assert resident_bytes() - gone > 150_000_000
    assert all(bool((t == 1).all()) for t in (*small, large))


def test_wanted_bytes_takes_the_fewest_storages_that_suffice(offloader):
    tensors = [torch.ones(n) for n in (1_000, 3_000_000, 2_000_000)]
    report = offloader.suspend(wanted_bytes=13_000_000)
    assert report.storages == 2
    assert report.freed_bytes == 20_000_000
    assert tensors[0].untyped_storage().resizable()


def test_a_second_suspend_takes_what_came_since(offloader):
    first = torch.ones(1000)
    offloader.suspend()
    second = torch.full((1000,), 2.0)
    assert scan("simulated").used_bytes >= second.untyped_storage().nbytes()
    report = offloader.suspend()
    assert report.freed_bytes >= 4000
    assert offloader.suspended_bytes >= 8000
    offloader.restore()
    assert offloader.suspended_bytes == 0
    assert first.sum() == 1000
    assert second.sum() == 2000


def test_storages_made_or_dead_while_suspended_are_left_alone(offloader):
    gc.collect()
    keep, drop = torch.ones(1000), torch.ones(5_000_000)
    offloader.suspend()
    held = offloader.suspended_bytes
    del drop
    gc.collect()
    assert held - offloader.suspended_bytes == 20_000_000
    new = torch.full((1000,), 5.0)
    address = new.data_ptr()
    offloader.restore()
    assert new.data_ptr() == address
    assert keep.sum() == 1000


def test_the_spill_is_dropped_when_nothing_points_to_it(offloader, tmp_path):
    def mapped() -> int:
        with open("/proc/self/maps") as f:
            return sum(str(tmp_path) in line for line in f)

    keep = torch.ones(1000)
    offloader.suspend()
    assert mapped() == 1
    assert not list((tmp_path / "spill").iterdir())
    assert (tmp_path / "spill").stat().st_mode & 0o777 == 0o700
    offloader.restore()
    assert mapped() == 0
    assert keep.sum() == 1000


def test_a_shared_or_replaced_storage_is_not_taken_back_from_the_user(offloader):
    tensor = torch.arange(1000.0)
    offloader.suspend()
    tensor.share_memory_()
    address = tensor.data_ptr()
    offloader.restore()
    assert tensor.data_ptr() == address
    assert tensor.is_shared()
    assert torch.equal(tensor, torch.arange(1000.0))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_does_not_write_into_its_parents_tensors(offloader):
    tensor = torch.zeros(4096)
    offloader.suspend()
    pid = os.fork()
    if pid == 0:
        ctypes.memset(tensor.data_ptr(), 1, 16384)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert tensor.sum() == 0
    offloader.restore()
    assert tensor.sum() == 0


def test_a_thread_started_while_suspended_reads_right(offloader):
    tensor = torch.arange(100_000.0)
    expected = tensor.sum().item()
    offloader.suspend()
    sums = []
    thread = threading.Thread(target=lambda: sums.extend(tensor.sum().item() for _ in range(20)))
    thread.start()
    thread.join()
    assert sums == [expected] * 20


def test_without_storages_nothing_happens(tmp_path):
    offloader = Offloader("simulated", str(tmp_path / "never"))
    assert offloader.restore().bytes == 0
    assert offloader.state == "resident"
    assert not (tmp_path / "never").exists()


def test_modes_the_user_left_on_do_not_get_in_the_way(offloader):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(f"{func} was dispatched to the user's mode")

    tensor = torch.ones(1000)
    with torch.inference_mode():
        inference = torch.ones(1000)
    torch.set_default_device("meta")
    try:
        with Refuse():
            report = offloader.suspend()
            assert report.storages >= 2
            assert not tensor.untyped_storage().resizable()
            assert offloader.restore().storages == report.storages
    finally:
        torch.set_default_device(None)
    assert tensor.sum() == inference.sum() == 1000
