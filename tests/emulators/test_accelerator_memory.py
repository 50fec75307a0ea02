"""The emulated accelerator's allocator, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from emulators.accelerator import Devices, Worker

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


@pytest.fixture(scope="module")
def worker(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    ledger = tmp_path_factory.mktemp("memory") / "ledger"
    with Worker(Devices(ledger, (256 * MIB, 256 * MIB), poison=True)) as process:
        yield process


def _bytes(n: int, device: str = "emu:0") -> Any:
    import torch

    return torch.empty(n, dtype=torch.uint8, device=device)


def segments_of_sizes() -> None:
    import torch

    torch.emu.empty_cache()
    assert torch.emu.memory_snapshot() == []
    # As CUDA's: small ones share 2 MiB, larger ones 20 MiB, from 10 MiB on each its own.
    for size, kind, total, rounded in (
        (1, "small", 2 * MIB, 512),
        (513, "small", 2 * MIB, 1024),
        (MIB, "small", 2 * MIB, MIB),
        (MIB + 1, "large", 20 * MIB, MIB + 512),
        (10 * MIB, "large", 10 * MIB, 10 * MIB),
        (11 * MIB - 1, "large", 12 * MIB, 12 * MIB),
    ):
        tensor = _bytes(size)
        [segment] = torch.emu.memory_snapshot()
        first = segment["blocks"][0]
        assert (segment["segment_type"], segment["total_size"]) == (kind, total), size
        assert first["address"] == segment["address"] == tensor.data_ptr()
        assert (first["size"], first["requested_size"]) == (rounded, size)
        assert first["state"] == "active_allocated"
        assert segment["allocated_size"] == segment["active_size"] == rounded
        assert sum(b["size"] for b in segment["blocks"]) == total
        assert torch.emu.memory_allocated() == rounded
        assert torch.emu.memory_reserved() == total
        del tensor
        torch.emu.empty_cache()
    assert torch.emu.memory_reserved() == 0


def test_segments_and_blocks_have_the_sizes_that_cuda_gives_them(worker: Worker) -> None:
    worker.call(segments_of_sizes)


def blocks_split_and_join() -> None:
    import torch

    torch.emu.empty_cache()
    tensors = [_bytes(512 * 1024) for _ in range(3)]
    [segment] = torch.emu.memory_snapshot()
    assert [b["state"] for b in segment["blocks"]] == ["active_allocated"] * 3 + ["inactive"]
    middle = tensors[1].data_ptr()
    tensors[1] = None
    torch.emu.empty_cache()  # the segment is still in use
    [segment] = torch.emu.memory_snapshot()
    assert [b["state"] for b in segment["blocks"]] == [
        "active_allocated",
        "inactive",
        "active_allocated",
        "inactive",
    ]
    stats = torch.emu.memory_stats()
    assert stats["inactive_split_bytes.all.current"] == MIB
    assert stats["allocation.small_pool.current"] == 2
    assert _bytes(300 * 1024).data_ptr() == middle  # best fit, and freed at once
    tensors.clear()
    [segment] = torch.emu.memory_snapshot()
    assert [(b["size"], b["state"]) for b in segment["blocks"]] == [(2 * MIB, "inactive")]
    with torch.emu.Stream():
        apart = _bytes(512)  # another stream's blocks are not for this one
    assert len(torch.emu.memory_snapshot()) == 2
    del apart
    torch.emu.empty_cache()
    assert torch.emu.memory_snapshot() == []


def test_blocks_split_join_and_leave_with_their_whole_segment(worker: Worker) -> None:
    worker.call(blocks_split_and_join)


def statistics() -> None:
    import torch

    torch.emu.empty_cache()
    torch.emu.reset_peak_memory_stats()
    held, passing = _bytes(4 * MIB), _bytes(18 * MIB)
    del passing
    assert torch.emu.memory_allocated(0) == 4 * MIB
    assert torch.emu.max_memory_allocated("emu:0") == 22 * MIB
    assert torch.emu.max_memory_reserved() == 38 * MIB
    assert torch.accelerator.memory_reserved() == 38 * MIB
    assert torch.emu.mem_get_info() == (218 * MIB, 256 * MIB)
    torch.emu.reset_peak_memory_stats()
    assert torch.emu.max_memory_allocated() == 4 * MIB
    torch.emu.empty_cache()
    assert torch.emu.memory_reserved() == 20 * MIB
    assert torch.emu.memory_allocated(1) == 0
    del held
    torch.emu.empty_cache()


def test_statistics_tell_now_and_peak(worker: Worker) -> None:
    worker.call(statistics)


def out_of_memory() -> str:
    import torch

    torch.emu.empty_cache()
    retries = torch.emu.memory_stats()["num_alloc_retries"]
    cached = _bytes(100 * MIB)
    del cached
    held = _bytes(180 * MIB)  # fits after the cached segment has gone
    assert torch.emu.memory_stats()["num_alloc_retries"] == retries + 1
    try:
        _bytes(100 * MIB)
    except torch.OutOfMemoryError as error:
        text = str(error)
    assert torch.emu.memory_stats()["num_ooms"] >= 1
    assert held.add_(0).numel() == 180 * MIB
    assert _bytes(100 * MIB, "emu:1").numel()  # the other device has room
    del held
    assert _bytes(100 * MIB).numel()
    torch.emu.empty_cache()
    return text


def test_too_much_is_torchs_out_of_memory_error_after_the_cache_was_emptied(
    worker: Worker,
) -> None:
    text = worker.call(out_of_memory)
    assert "Tried to allocate 100.00 MiB" in text
    assert "total capacity of 256.00 MiB of which 76.00 MiB is free" in text


def fraction() -> str:
    import torch

    torch.emu.empty_cache()
    torch.emu.set_per_process_memory_fraction(0.25, 0)
    try:
        held = _bytes(60 * MIB)
        try:
            _bytes(10 * MIB)
        except torch.OutOfMemoryError as error:
            text = str(error)
        torch.emu.set_per_process_memory_fraction(0.5, 0)
        _bytes(10 * MIB)
        del held
    finally:
        torch.emu.set_per_process_memory_fraction(1.0, 0)
        torch.emu.empty_cache()
    return text


def test_the_memory_fraction_is_a_limit_that_can_be_moved(worker: Worker) -> None:
    assert "64.00 MiB allowed" in worker.call(fraction)


def resident_bytes() -> tuple[int, int, int]:
    from pathlib import Path

    import torch

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    torch.emu.empty_cache()
    before = resident()
    large = torch.ones(96 * MIB, dtype=torch.uint8, device="emu")
    small = [torch.ones(1000, dtype=torch.uint8, device="emu") for _ in range(4000)]
    full = resident()
    del large
    small.clear()
    torch.emu.empty_cache()
    return before, full, resident()


def test_memory_returns_to_the_system_small_tensors_too(worker: Worker) -> None:
    before, full, after = worker.call(resident_bytes)
    assert full - before > 96 * MIB
    assert after - before < 16 * MIB


def swap_out_and_back() -> None:
    import ctypes

    import torch

    torch.emu.empty_cache()
    tensor = torch.arange(3 * MIB, device="emu:1", dtype=torch.float32)
    view, same = tensor[1000:2000], tensor.clone()
    storage = tensor.untyped_storage()
    size, released = storage.nbytes(), tensor.data_ptr()
    host = torch.UntypedStorage(size)
    ctypes.memmove(host.data_ptr(), storage.data_ptr(), size)
    outside = torch.emu.storage_at(host.data_ptr(), size, storage.device)
    storage._swap_data_ptr_(outside)
    before = torch.emu.memory_allocated(1)
    assert outside.data_ptr() == released
    del outside
    assert before - torch.emu.memory_allocated(1) == size
    # Freed blocks are overwritten here, so that whoever still reads there is found out.
    assert ctypes.string_at(released, 16) == b"\xfb" * 16
    assert tensor.data_ptr() == host.data_ptr()
    assert tensor.device == storage.device == torch.device("emu:1")

    assert torch.equal(tensor, same)
    view.add_(1)
    same[1000:2000] += 1
    assert torch.equal(tensor, same)
    assert torch.equal(tensor.clone().to("emu:0").cpu(), same.cpu())
    tensor.requires_grad_()
    (tensor * 2).sum().backward()
    assert tensor.grad.device == tensor.device

    back = torch.UntypedStorage(size, device=storage.device)
    ctypes.memmove(back.data_ptr(), storage.data_ptr(), size)
    storage._swap_data_ptr_(back)
    del back, host
    assert torch.equal(tensor, same)
    assert view.untyped_storage().data_ptr() == tensor.data_ptr()
    assert storage.resizable()


def test_a_storage_can_be_swapped_to_host_memory_and_everything_works_on(worker: Worker) -> None:
    worker.call(swap_out_and_back)


def frees_from_threads() -> None:
    import threading

    import torch

    torch.emu.empty_cache()

    def work(device: int) -> None:
        for size in range(1, 400):
            _bytes(size * 5000, f"emu:{device}")

    threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.emu.memory_allocated(0) == torch.emu.memory_allocated(1) == 0
    torch.emu.empty_cache()
    assert torch.emu.memory_snapshot() == []


def test_threads_may_allocate_and_free_at_once(worker: Worker) -> None:
    worker.call(frees_from_threads)
