"""Devices that torch has an allocator of its own for: CUDA, and others with the same calls.

Proven on the emulated accelerator. What is CUDA's alone, page-locking and unified addressing, is
unproven: written from documented behaviour and not yet run on a GPU. The tests marked ``gpu`` are
its proof. There a suspended storage points to page-locked host memory, which kernels read and write
in place.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Sequence
from typing import Any

from ...errors import DeviceError, StorageFullError
from .region import Region, layout
from .segments import Segment

_ATTRIBUTE = "_jupyter_gpu_region"
_PORTABLE_AND_MAPPED = 1 | 2  # cudaHostRegisterPortable | cudaHostRegisterMapped


def is_here(device: str, storage: Any) -> bool:
    """Return whether a storage belongs to a device of that type."""
    return bool(storage.device.type == device)


def host_reason(storage: Any) -> str | None:
    """Return ``None``: such a storage is device memory unless a region holds it."""
    return None


class AcceleratorAdapter:
    """Device memory of torch's allocator for `device`, host copies in anonymous memory."""

    def __init__(self, device: str) -> None:
        self.device = device

    def quiesce(self, torch: Any) -> None:
        """Wait until no kernel in flight uses an address that is about to change."""
        module = getattr(torch, self.device)
        for index in range(module.device_count()):
            module.synchronize(index)

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

    def save(self, torch: Any, storages: Sequence[Any]) -> tuple[Region, list[int]]:
        """Copy `storages` to fresh memory, which on CUDA is page-locked.

        Raises
        ------
        StorageFullError
            If the host has no memory for it, or does not let it be locked.
        """
        offsets, total = layout([s.nbytes() for s in storages])
        total = -(-total // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            region = Region(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as e:
            raise StorageFullError(
                f"the host has no {total} bytes to hold device memory ({e.strerror}); everything "
                "stays on the device"
            ) from e
        region.enroll()
        if self.device == "cuda":
            _lock_pages(torch, region, total)
        for storage, offset in zip(storages, offsets, strict=True):
            host = torch.frombuffer(
                region, dtype=torch.uint8, offset=offset, count=storage.nbytes()
            )
            host.copy_(_bytes_of(torch, storage), non_blocking=True)
        self.quiesce(torch)
        return region, offsets

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage that says it is on the device and points into `region`."""
        return torch._C._construct_storage_from_data_pointer(
            region.base + offset, storage.device, storage.nbytes()
        )

    def attach(self, storage: Any, region: Region) -> None:
        """Keep `region` alive for as long as `storage` points into it."""
        setattr(storage, _ATTRIBUTE, region)

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

    def fetch(self, torch: Any, storage: Any, fresh: Any) -> None:
        """Copy the bytes of a suspended storage into `fresh`, in stream order."""
        _bytes_of(torch, fresh).copy_(_bytes_of(torch, storage), non_blocking=True)

    def settle(self, torch: Any) -> None:
        """Give freed blocks back to the driver, so that other processes can have them."""
        self.quiesce(torch)
        getattr(torch, self.device).empty_cache()


def _lock_pages(torch: Any, region: Region, total: int) -> None:
    runtime = torch.cuda.cudart()
    code = int(runtime.cudaHostRegister(region.base, total, _PORTABLE_AND_MAPPED))
    if code:
        raise StorageFullError(
            f"the host does not let {total} bytes be page-locked (cudaHostRegister says "
            f"{code}); everything stays on the device: raise the memlock limit"
        )
    region.on_drop = functools.partial(runtime.cudaHostUnregister, region.base)


def _bytes_of(torch: Any, storage: Any) -> Any:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
