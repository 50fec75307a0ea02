"""Proof of what is CUDA's alone in taking memory back; runs only where there is a GPU."""

from __future__ import annotations

import gc
import os

import pytest

from jupyter_gpu_predict.errors import StorageFullError
from jupyter_gpu_predict.kernel.offload import Offloader, UseLog, cuda, staging
from jupyter_gpu_predict.kernel.offload.host_memory import HostMemory

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        not hasattr(torch._C.StorageBase, "_swap_data_ptr_"),
        reason="this torch has no _swap_data_ptr_",
    ),
]
MIB = 1 << 20


@pytest.fixture
def offloader(tmp_path):
    gc.collect()
    torch.ones(1, device="cuda")
    made = Offloader("cuda", str(tmp_path / "spill"))
    yield made
    made.restore()
    made.release()


def test_this_gpu_can_use_locked_host_memory_in_place():
    assert cuda.why_not_in_place(0) is None


def test_host_copies_are_page_locked_and_used_again(offloader):
    tensors = [torch.full((n * MIB // 4,), float(n), device="cuda") for n in (1, 100, 30)]
    offloader.suspend()
    places = sorted(t.data_ptr() for t in tensors)
    host = torch._C._construct_storage_from_data_pointer(
        tensors[1].data_ptr(), torch.device("cpu"), 100 * MIB
    )
    assert torch.empty(0).set_(host).is_pinned()
    offloader.restore()
    kept = offloader._adapter.kept_bytes
    offloader.suspend()
    if kept:
        assert sorted(t.data_ptr() for t in tensors) == places
    offloader.restore()
    offloader.release()
    assert offloader._adapter.kept_bytes == 0
    assert all(bool((t == t[0]).all()) for t in tensors)


def test_ten_thousand_small_ones_come_back_whole(offloader):
    tensors = [torch.full((10_000,), float(i), device="cuda") for i in range(10_000)]
    free = torch.cuda.mem_get_info()[0]
    offloader.suspend()
    assert torch.cuda.mem_get_info()[0] - free > 300_000_000
    offloader.restore()
    assert all(float(t[0]) == float(t[-1]) == i for i, t in enumerate(tensors))


def test_a_lazy_restore_leaves_the_rest_usable_in_place(offloader):
    space = {f"t{i}": torch.full((MIB,), float(i), device="cuda") for i in range(8)}
    log = UseLog()
    offloader.suspend()
    report = offloader.restore(log.next_values("t3.sum()", space))
    assert report.storages == 1
    space["t5"] += 1  # a kernel that works on host memory
    assert float((space["t5"] * space["t3"]).sum()) == 18 * MIB
    while offloader.restore_some(budget_bytes=8 * MIB).storages:
        pass
    assert offloader.state == "resident"
    assert [float(t[0]) for t in space.values()] == [0, 1, 2, 3, 4, 6, 6, 7]


def test_what_goes_to_disk_is_used_in_place_or_refused(offloader, monkeypatch):
    tensors = [torch.full((64 * MIB // 4,), float(i), device="cuda") for i in range(3)]
    monkeypatch.setattr(staging, "host_memory", lambda: HostMemory(0, 70 * MIB))
    places = [t.data_ptr() for t in tensors]
    if cuda.why_not_pageable(0) is not None:
        with pytest.raises(StorageFullError, match="pageable"):
            offloader.suspend()
        assert [t.data_ptr() for t in tensors] == places
        return
    assert offloader.suspend().spilled_bytes >= 120 * MIB
    for i, tensor in enumerate(tensors):
        tensor.add_(1)
        assert bool((tensor.cpu() == i + 1).all())
    offloader.restore()
    assert all(bool((t == i + 1).all()) for i, t in enumerate(tensors))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_no_part_in_it(offloader):
    tensor = torch.full((MIB,), 3.0, device="cuda")
    offloader.suspend()
    pid = os.fork()
    if pid == 0:
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    tensor.add_(1)
    offloader.restore()
    assert bool((tensor == 4).all())
