"""Devices that torch has an allocator of its own for: CUDA, and others with the same calls.

Proven on the emulated accelerator. What is CUDA's alone (`cuda`) is unproven: the tests marked
``gpu`` are its proof. There a suspended storage points to page-locked host memory, which kernels
read and write in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import DeviceError, RefusedError
from . import cuda, staging
from .pool import Loan, Pool
from .region import Region
from .segments import Segment
from .spill import SpillFile
from .staging import Chunk, in_memory_first

_ATTRIBUTE = "_jupyter_gpu_region"
_STREAMS = 2
"""Copies take turns on so many streams of a device, so that one is under way at any time."""


class AcceleratorAdapter:
    """Device memory of torch's allocator for `device`, host copies in memory, the rest on disk."""

    def __init__(self, device: str, spill_dir: str) -> None:
        self.device = device
        self._dir = spill_dir
        self._pool = Pool(self._prepare)
        self._torch: Any = None
        self._streams: dict[tuple[int, int], Any] = {}
        self._turn = 0

    def _prepare(self, region: Region) -> None:
        if self.device == "cuda":
            cuda.lock_pages(self._torch, region)

    @property
    def kept_bytes(self) -> int:
        """Bytes of host memory that are kept for the next time."""
        return self._pool.kept_bytes

    def quiesce(self, torch: Any, storages: Sequence[Any]) -> None:
        """Wait until no kernel in flight uses an address that is about to change.

        Raises
        ------
        DeviceError
            If a device does not answer.
        """
        module = getattr(torch, self.device)
        for index in sorted({int(s.device.index) for s in storages}):
            try:
                module.synchronize(index)
            except RuntimeError as e:
                raise DeviceError(f"GPU {index} does not answer: {_first_line(e)}") from e

    def segments(self, torch: Any) -> list[Segment]:
        """Return the allocator's segments, with the blocks that it has handed out."""
        module = getattr(torch, self.device)
        if not module.is_initialized():
            return []
        try:
            snapshot = module.memory_snapshot()
        except RuntimeError:
            return []  # an allocator that gives no account, such as cudaMallocAsync
        return [
            Segment(
                segment["address"],
                segment["total_size"],
                tuple(
                    (block["address"], block["size"])
                    for block in segment["blocks"]
                    if block["state"] != "inactive"
                ),
            )
            for segment in snapshot
        ]

    def plan(
        self, torch: Any, storages: Sequence[Any], last_use: Callable[[], Mapping[int, int]]
    ) -> list[Chunk]:
        """Choose what lies in host memory; the coldest of what does not fit goes to disk.

        Raises
        ------
        StorageFullError
            If the host has no room for it.
        RefusedError
            If the device cannot use host memory in place.
        """
        no_disk = None
        if self.device == "cuda":
            for index in sorted({int(s.device.index) for s in storages}):
                if (why := cuda.why_not_in_place(index)) is not None:
                    raise RefusedError(f"{why}; its memory cannot be moved under living tensors")
                no_disk = no_disk or cuda.why_not_pageable(index)
        return in_memory_first(
            storages,
            self._dir,
            last_use,
            why_no_disk=no_disk,
            kept_bytes=self._pool.kept_bytes,
        )

    def reserve(self, torch: Any, chunks: Sequence[Chunk]) -> list[Loan | SpillFile]:
        """Set host memory and files aside for each chunk.

        Raises
        ------
        StorageFullError
            If the host has no memory, does not let it be locked, or the disk has no room.
        RefusedError
            If a spill file cannot be made.
        """
        self._torch = torch
        files = [SpillFile(self._dir, c.nbytes) if c.on_disk else None for c in chunks]
        loans = iter(self._pool.lend([c.nbytes for c in chunks if not c.on_disk]))
        return [next(loans) if f is None else f for f in files]

    def copy_out(self, torch: Any, chunk: Chunk, place: Any) -> Callable[[], Region]:
        """Begin to copy a chunk; the function that is returned waits for the end of it."""
        if isinstance(place, SpillFile):
            return self._copy_to_file(torch, chunk, place)
        module = getattr(torch, self.device)
        region = place.region
        host = _host_bytes(torch, region.base, region.span)
        used: dict[int, Any] = {}
        self._turn += 1
        with contextlib.ExitStack() as stack:
            for storage, offset in zip(chunk.storages, chunk.offsets, strict=True):
                index = int(storage.device.index)
                if index not in used:
                    used[index] = self._stream(module, index)
                    stack.enter_context(module.stream(used[index]))
                target = host[offset : offset + storage.nbytes()]
                target.copy_(_bytes_of(torch, storage), non_blocking=True)
        events = [stream.record_event() for stream in used.values()]

        def finish() -> Region:
            for event in events:
                event.synchronize()
            return region  # type: ignore[no-any-return]

        return finish

    def _copy_to_file(self, torch: Any, chunk: Chunk, file: SpillFile) -> Callable[[], Region]:
        # By way of a piece of host memory, however large the storage.
        step = min(staging.CHUNK_BYTES, chunk.nbytes)
        (loan,) = self._pool.lend([step])
        host = _host_bytes(torch, loan.region.base, loan.region.span)
        for storage in chunk.storages:
            device = _bytes_of(torch, storage)
            for start in range(0, storage.nbytes(), step):
                part = device[start : start + step]
                host[: part.numel()].copy_(part)
                file.write([(loan.region.base, part.numel())])

        def finish() -> Region:
            region = file.mapped()
            file.close()
            return region

        return finish

    def _stream(self, module: Any, index: int) -> Any:
        key = index, self._turn % _STREAMS
        if key not in self._streams:
            self._streams[key] = module.Stream(device=index)
        return self._streams[key]

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage that says it is on the device and points into `region`."""
        return torch._C._construct_storage_from_data_pointer(
            region.base + offset, storage.device, storage.nbytes()
        )

    def attach(self, storage: Any, place: Any, region: Region) -> None:
        """Keep `region` alive for as long as `storage` points into it.

        Who reads the bytes without the device, e.g. a snapshot while the device is lost, finds
        here that the storage's address is the host's.
        """
        setattr(storage, _ATTRIBUTE, place if isinstance(place, Loan) else region)

    def detach(self, storage: Any) -> None:
        """Let the storage's region go."""
        if hasattr(storage, _ATTRIBUTE):
            delattr(storage, _ATTRIBUTE)

    def allocate(self, torch: Any, storage: Any) -> Any:
        """Return a fresh storage of the size and device of `storage`.

        Raises
        ------
        DeviceError
            If the GPU has no memory for it.
        """
        nbytes = storage.nbytes()
        try:
            return torch.UntypedStorage(nbytes, device=storage.device)
        except RuntimeError as e:
            full = isinstance(e, torch.OutOfMemoryError)
            why = f"has no {nbytes} free bytes to bring state back to" if full else f"failed: {e}"
            raise DeviceError(f"the GPU {why}; the state stays suspended and whole") from e

    def fetch(self, torch: Any, storages: Sequence[Any], fresh: Sequence[Any]) -> None:
        """Copy the bytes of suspended storages into fresh ones, in stream order."""
        for storage, block in zip(storages, fresh, strict=True):
            host = _host_bytes(torch, storage.data_ptr(), storage.nbytes())
            _bytes_of(torch, block).copy_(host, non_blocking=True)

    def settle(self, torch: Any) -> None:
        """Give freed blocks back to the driver, so that other processes can have them."""
        with contextlib.suppress(RuntimeError):  # a lost device has nothing to give back
            getattr(torch, self.device).empty_cache()

    def release(self) -> None:
        """Give the host memory back that is kept for the next time."""
        self._pool.drop()


def _bytes_of(torch: Any, storage: Any) -> Any:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _host_bytes(torch: Any, address: int, nbytes: int) -> Any:
    """Return host memory as a tensor, which does not keep it alive."""
    storage = torch._C._construct_storage_from_data_pointer(address, torch.device("cpu"), nbytes)
    return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
