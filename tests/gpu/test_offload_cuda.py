"""Proof of the CUDA adapter; runs only where there is a GPU."""

from __future__ import annotations

import gc

import pytest

from jupyter_gpu_predict.errors import DeviceError, RefusedError
from jupyter_gpu_predict.kernel.memory import PeakMeter
from jupyter_gpu_predict.kernel.offload import Offloader, install_export_tracking, scan

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MIB = 1 << 20
CAN_SWAP = hasattr(torch._C.StorageBase, "_swap_data_ptr_")
needs_swap = pytest.mark.skipif(not CAN_SWAP, reason="this torch has no _swap_data_ptr_")


@pytest.fixture
def offloader(tmp_path):
    install_export_tracking()
    gc.collect()
    torch.ones(1, device="cuda")
    made = Offloader("cuda", str(tmp_path))
    yield made
    if CAN_SWAP:
        made.restore()


def make_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)
    ).cuda()
    return model, torch.optim.Adam(model.parameters())


def train(model, optimizer, seed, between=lambda: None):
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(seed)).cuda()
    optimizer.zero_grad()
    loss = (model(x) ** 2).mean()
    between()
    loss.backward()
    optimizer.step()


@pytest.mark.skipif(CAN_SWAP, reason="this torch can swap")
def test_an_old_torch_is_refused_and_nothing_changes(offloader):
    tensor = torch.ones(1000, device="cuda")
    address = tensor.data_ptr()
    with pytest.raises(RefusedError, match=r"2\.12"):
        offloader.suspend()
    assert tensor.data_ptr() == address


def test_the_scan_agrees_with_torchs_own_block_table():
    gc.collect()
    held = [torch.ones(n * MIB // 4, device="cuda") for n in (1, 7, 64)]
    assert scan("cuda").used_bytes == pytest.approx(torch.cuda.memory_allocated(), abs=MIB)
    del held


@needs_swap
def test_reads_and_writes_while_suspended_are_right_and_kept(offloader):
    base = torch.randn(1000, 1000, device="cuda")
    view, expected = base[10:20], base.cpu()
    offloader.suspend()
    assert base.device.type == "cuda"
    assert torch.equal(base.cpu(), expected)
    assert torch.allclose((base @ base).cpu(), (expected.cuda() @ expected.cuda()).cpu())
    view.fill_(7)
    expected[10:20] = 7
    offloader.restore()
    assert torch.equal(base.cpu(), expected)


@needs_swap
def test_the_driver_gets_the_memory_back(offloader):
    tensor = torch.ones(512 * MIB // 4, device="cuda")
    free = torch.cuda.mem_get_info()[0]
    assert offloader.suspend().freed_bytes >= 512 * MIB
    assert torch.cuda.mem_get_info()[0] - free > 400 * MIB
    assert scan("cuda").used_bytes < 512 * MIB
    offloader.restore()
    assert scan("cuda").used_bytes >= 512 * MIB
    assert bool((tensor == 1).all())


@needs_swap
def test_training_is_bit_identical(offloader):
    torch.use_deterministic_algorithms(False)
    plain, plain_optimizer = make_model()
    moved, moved_optimizer = make_model()

    def cycle():
        offloader.suspend()
        offloader.restore()

    for seed in range(6):
        train(plain, plain_optimizer, seed)
        train(moved, moved_optimizer, seed, cycle)
        cycle()
    assert all(
        torch.equal(p, q) for p, q in zip(plain.parameters(), moved.parameters(), strict=True)
    )


@needs_swap
def test_exports_stay_and_are_named(offloader):
    tensor = torch.ones(1000, device="cuda")
    other = torch.from_dlpack(tensor)
    assert tensor.__cuda_array_interface__["data"][0] == tensor.data_ptr()
    address = tensor.data_ptr()
    report = offloader.suspend()
    assert any("exported" in reason for reason, _ in report.kept)
    assert tensor.data_ptr() == address
    assert other.sum() == 1000


@needs_swap
def test_living_cuda_graphs_are_refused(offloader):
    static = torch.zeros(10, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static += 1
    with pytest.raises(RefusedError, match="CUDA graphs"):
        offloader.suspend()
    graph.replay()


@needs_swap
def test_a_full_gpu_leaves_the_state_suspended_and_whole(offloader):
    tensor = torch.full((256 * MIB // 4,), 3.0, device="cuda")
    offloader.suspend()
    free = torch.cuda.mem_get_info()[0]
    hog = torch.empty(free - 64 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(DeviceError, match=r"no .* free bytes"):
        offloader.restore()
    del hog
    torch.cuda.empty_cache()
    offloader.restore()
    assert bool((tensor == 3).all())


def test_the_peak_is_torchs():
    meter = PeakMeter("cuda")
    torch.ones(1, device="cuda")
    meter.begin()
    torch.ones(64 * MIB // 4, device="cuda")
    peak = meter.end()
    assert peak.source == "torch.cuda"
    assert peak.peak_bytes - peak.end_bytes >= 64 * MIB
