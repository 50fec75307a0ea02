"""Emulated devices: a host that is short, a device that is lost, a process that forks meanwhile."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Devices, Worker

from jupyter_gpu_predict.errors import DeviceError, StorageFullError
from jupyter_gpu_predict.kernel.offload import Offloader, moving, pool, staging
from jupyter_gpu_predict.kernel.offload.host_memory import HostMemory
from jupyter_gpu_predict.snapshots.tensors import read_storage

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


@pytest.fixture(scope="module")
def devices(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Devices:
    ledger = tmp_path_factory.mktemp("devices") / "ledger"
    return Devices(ledger, (256 * MIB, 256 * MIB), poison=True)


@pytest.fixture(scope="module")
def worker(devices: Devices) -> Iterator[Worker]:
    with Worker(devices) as made:
        yield made


class Held:
    """Tensors with numbers of their own, in a kernel with an offloader."""

    def __init__(self, folder: str, sizes: list[int], device: str = "emu:0") -> None:
        import torch

        # Small chunks, so that little memory makes several.
        staging.CHUNK_BYTES = 16 * MIB
        self.last: dict[int, int] = {}
        self.offloader = Offloader("emu", folder, last_use=lambda: self.last)
        self.tensors = [
            torch.arange(n * MIB // 4, device=device, dtype=torch.int32) + n for n in sizes
        ]
        self.sums = self.read()

    def read(self) -> list[int]:
        return [int(t.cpu().long().sum()) for t in self.tensors]

    def whole(self) -> bool:
        return self.read() == self.sums

    def bytes_on_host(self) -> bool:
        """Read the host copies without the device."""
        import torch

        sums = []
        for t in self.tensors:
            storage = t.untyped_storage()
            assert storage._jupyter_gpu_region.holds(storage.data_ptr())
            host = torch._C._construct_storage_from_data_pointer(
                storage.data_ptr(), torch.device("cpu"), storage.nbytes()
            )
            sums.append(int(torch.empty(0, dtype=torch.int32).set_(host).long().sum()))
        return sums == self.sums

    def waiting(self) -> list[bool]:
        return [not t.untyped_storage().resizable() for t in self.tensors]

    def close(self) -> None:
        import torch

        self.offloader.restore()
        assert self.whole()
        self.tensors.clear()
        self.offloader.release()
        gc.collect()
        torch.emu.empty_cache()


class ShortHost:
    """Let the host have room for so much device memory."""

    def __init__(self, room: int, free_disk: int | None = None) -> None:
        self.room, self.free_disk = room, free_disk

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(staging, "host_memory", lambda: HostMemory(0, self.room))
        if self.free_disk is not None:
            usage = type("Usage", (), {"free": self.free_disk})
            self.patch.setattr(staging.shutil, "disk_usage", lambda _: usage)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def spill_the_coldest(folder: str) -> None:
    held = Held(folder, [20, 30, 10, 40])
    for tensor, use in zip(held.tensors, (1, 4, 3, 2), strict=True):
        held.last[tensor.untyped_storage()._cdata] = use
    with ShortHost(45 * MIB):
        report = held.offloader.suspend()
    assert report.freed_bytes == 100 * MIB
    # The warmest two fit; the next one does not, and all colder ones follow it.
    assert report.spilled_bytes == 60 * MIB
    assert list(Path(folder).iterdir()) == []
    with open("/proc/self/maps") as maps:
        assert sum(folder in line for line in maps) == 2
    assert held.whole()
    # What is written to a spilled one stays in this process and comes back.
    held.tensors[3].add_(1)
    held.tensors[0][5:10] = 7
    held.sums = held.read()
    held.close()
    with open("/proc/self/maps") as maps:
        assert not any(folder in line for line in maps)


def test_the_coldest_go_to_disk_where_host_memory_ends(worker: Worker, tmp_path: Path) -> None:
    worker.call(spill_the_coldest, str(tmp_path / "spill"))


def too_little_of_both(folder: str) -> None:
    held = Held(folder, [20, 30])
    places = [t.data_ptr() for t in held.tensors]
    with (
        ShortHost(25 * MIB, free_disk=10 * MIB),
        pytest.raises(StorageFullError, match=r"room for 26214400 .*\(10485760 bytes are free"),
    ):
        held.offloader.suspend()
    assert [t.data_ptr() for t in held.tensors] == places
    assert held.offloader.state == "resident"
    held.close()


def test_a_host_too_small_in_memory_and_disk_changes_nothing(
    worker: Worker, tmp_path: Path
) -> None:
    worker.call(too_little_of_both, str(tmp_path / "spill"))


def reuse(folder: str) -> None:
    # Each is a chunk of its own, wherever the device has put them.
    held = Held(folder, [30, 20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "host_memory", lambda: HostMemory(1 << 34, 1 << 34))
        held.offloader.suspend()
        first = sorted(t.data_ptr() for t in held.tensors)
        held.offloader.restore()
        assert held.offloader._adapter.kept_bytes == 50 * MIB
        assert held.whole()
        held.offloader.suspend()
        assert sorted(t.data_ptr() for t in held.tensors) == first
        assert held.whole()
        held.offloader.restore()
        held.offloader.release()
        assert held.offloader._adapter.kept_bytes == 0
    held.close()


def test_host_memory_is_used_again(worker: Worker, tmp_path: Path) -> None:
    worker.call(reuse, str(tmp_path / "spill"))


def freed_meanwhile(folder: str) -> None:
    """Before the third chunk is copied, wait until the first one's memory is others'."""
    import torch

    held = Held(folder, [16, 16, 16])
    adapter = held.offloader._adapter
    torch.emu.empty_cache()
    copy_out, free = adapter.copy_out, [torch.emu.mem_get_info(0)[0]]

    def watched(*args: Any) -> Any:
        if len(free) == 3:
            until = time.monotonic() + 60
            while torch.emu.mem_get_info(0)[0] < free[0] + 16 * MIB:
                assert time.monotonic() < until, "nothing fell free"
                time.sleep(0.01)
        free.append(torch.emu.mem_get_info(0)[0])
        return copy_out(*args)

    adapter.copy_out = watched  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "SETTLE_BYTES", 1)
        held.offloader.suspend()
    assert [f - free[0] for f in free] == [0, 0, 0, 16 * MIB]
    assert held.whole()
    held.close()


def test_memory_falls_free_while_later_chunks_are_copied(worker: Worker, tmp_path: Path) -> None:
    worker.call(freed_meanwhile, str(tmp_path / "spill"))


def lose_while_out(folder: str) -> None:
    import torch

    held = Held(folder, [20, 30], "emu:1")
    held.offloader.suspend()
    torch.emu.set_device_lost(1, True)
    try:
        for call in (held.offloader.restore, held.offloader.restore_some):
            with pytest.raises(DeviceError, match=r"stays suspended and whole|does not answer"):
                call()
        assert held.offloader.suspended_bytes == 50 * MIB
        assert held.bytes_on_host()
        for tensor, total in zip(held.tensors, held.sums, strict=True):
            saved = memoryview(bytes(read_storage(tensor.untyped_storage()))).cast("i")
            assert sum(saved) == total
        # Another device of the process goes on as if nothing had been.
        other = Held(folder, [10])
        other.offloader.suspend()
        other.close()
    finally:
        torch.emu.set_device_lost(1, False)
    held.close()


def test_a_device_lost_while_memory_is_out_loses_nothing(worker: Worker, tmp_path: Path) -> None:
    worker.call(lose_while_out, str(tmp_path / "spill"))


def lose_in_the_middle(folder: str) -> None:
    import torch

    held = Held(folder, [16, 16, 16], "emu:1")
    adapter = held.offloader._adapter
    copy_out, begun = adapter.copy_out, []

    def losing(*args: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            torch.emu.set_device_lost(1, True)
        return copy_out(*args)

    adapter.copy_out = losing  # type: ignore[method-assign]
    try:
        with pytest.raises(DeviceError, match="16777216 bytes are whole in host memory"):
            held.offloader.suspend()
        assert sorted(held.waiting()) == [False, False, True]
        assert held.offloader.suspended_bytes == 16 * MIB
    finally:
        torch.emu.set_device_lost(1, False)
    held.close()


def test_a_device_lost_in_the_middle_leaves_each_tensor_whole(
    worker: Worker, tmp_path: Path
) -> None:
    worker.call(lose_in_the_middle, str(tmp_path / "spill"))


def interrupt_in_the_middle(folder: str) -> None:
    held = Held(folder, [16, 16, 16])
    adapter = held.offloader._adapter
    copy_out, begun = adapter.copy_out, []

    def interrupted(*args: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return copy_out(*args)

    adapter.copy_out = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        held.offloader.suspend()
    assert held.waiting() == [False] * 3
    assert held.offloader.state == "resident"
    assert held.whole()
    del adapter.copy_out
    held.offloader.suspend()
    held.close()


def test_an_interrupt_in_the_middle_brings_all_back(worker: Worker, tmp_path: Path) -> None:
    worker.call(interrupt_in_the_middle, str(tmp_path / "spill"))


def fork_in_the_middle(folder: str) -> None:
    """Fork in another thread while a chunk is copied; the child reads, and tries to restore."""
    held = Held(folder, [16, 16, 16])
    adapter = held.offloader._adapter
    copy_out, begun, ended = adapter.copy_out, [], []

    def forking() -> None:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if held.offloader.suspended_bytes == 16 * MIB else 2
                waiting = [t for t, w in zip(held.tensors, held.waiting(), strict=True) if w]
                for t in waiting:
                    storage = t.untyped_storage()
                    assert storage._jupyter_gpu_region.holds(storage.data_ptr())
                with pytest.raises(DeviceError):
                    held.offloader.restore()  # would wait for ever on a lock nobody lets go
                held.tensors.clear()
                gc.collect()
            except BaseException:
                code = 3
            finally:
                os._exit(code)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def meanwhile(*args: Any) -> Any:
        begun.append(1)
        if len(begun) == 3:
            thread = threading.Thread(target=forking)
            thread.start()
            thread.join()
        return copy_out(*args)

    adapter.copy_out = meanwhile  # type: ignore[method-assign]
    held.offloader.suspend()
    assert ended == [0]
    assert held.whole()
    held.close()


def test_a_fork_in_the_middle_harms_neither(worker: Worker, tmp_path: Path) -> None:
    worker.call(fork_in_the_middle, str(tmp_path / "spill"))


def lazily(folder: str) -> None:
    import torch

    held = Held(folder, [10] * 10)
    held.offloader.suspend()
    report = held.offloader.restore(first=[{"a": held.tensors[3]}])
    assert (report.bytes, report.left_bytes) == (10 * MIB, 90 * MIB)
    assert held.whole()
    held.tensors[5].resize_(20 * MIB // 4)[10 * MIB // 4 :] = 1
    held.sums = held.read()
    free = torch.emu.mem_get_info(0)[0]
    hog = torch.empty(free - 32 * MIB, dtype=torch.uint8, device="emu:0")
    some = held.offloader.restore_some(budget_bytes=1 << 40)
    # As much as fits, and what was free in the cache of the allocator.
    assert 30 * MIB <= some.bytes < 80 * MIB
    with pytest.raises(DeviceError, match=r"no \d+ free bytes"):
        held.offloader.restore_some(budget_bytes=1)
    assert held.whole()
    del hog
    torch.emu.empty_cache()
    held.close()


def test_a_lazy_restore_on_a_device_that_gets_full(worker: Worker, tmp_path: Path) -> None:
    worker.call(lazily, str(tmp_path / "spill"))


def under_modes(folder: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            raise AssertionError(f"{func} was dispatched to the user's mode")

    held = Held(folder, [3, 20])
    with Refuse():
        held.offloader.suspend()
        assert all(held.waiting())
        held.offloader.restore()
    held.close()


def test_the_users_modes_see_nothing_of_it(worker: Worker, tmp_path: Path) -> None:
    worker.call(under_modes, str(tmp_path / "spill"))
