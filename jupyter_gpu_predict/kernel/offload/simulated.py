"""A simulated GPU: its memory is the CPU storages that torch itself allocated."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import DeviceError
from .region import Region
from .segments import Segment
from .spill import SpillFile
from .staging import Chunk, on_disk


def host_reason(storage: Any) -> str | None:
    """Return why a CPU storage is plain host memory, ``None`` if it is the simulated GPU's."""
    if not storage.resizable():
        if storage.filename is not None:
            return "mapped from a file"
        return "shared with numpy or owned by another library"
    return "in shared memory" if storage.is_shared() else None


class SimulatedAdapter:
    """Device memory on the heap, host copies in nameless spill files that are mapped."""

    device = "simulated"

    def __init__(self, spill_dir: str) -> None:
        self._dir = spill_dir

    def quiesce(self, torch: Any, storages: Sequence[Any]) -> None:
        """Do nothing: CPU work is over when its call returns."""

    def segments(self, torch: Any) -> list[Segment]:
        """Return none: the heap keeps no account of whose a block is."""
        return []

    def plan(
        self, torch: Any, storages: Sequence[Any], last_use: Callable[[], Mapping[int, int]]
    ) -> list[Chunk]:
        """Put all on disk: what went from the heap to other host memory would free nothing.

        Raises
        ------
        StorageFullError
            If the disk has no room.
        """
        return on_disk(storages, self._dir)

    def reserve(self, torch: Any, chunks: Sequence[Chunk]) -> list[SpillFile]:
        """Make a spill file for each chunk.

        Raises
        ------
        StorageFullError
            If the disk has no room.
        RefusedError
            If a spill file cannot be made.
        """
        return [SpillFile(self._dir, c.nbytes) for c in chunks]

    def copy_out(self, torch: Any, chunk: Chunk, place: Any) -> Callable[[], Region]:
        """Write the chunk to its file; the function that is returned maps it."""
        place.write((s.data_ptr(), s.nbytes()) for s in chunk.storages)

        def finish() -> Region:
            region: Region = place.mapped()
            place.close()
            return region

        return finish

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage over a part of `region`; its pointer keeps the region alive."""
        return torch.frombuffer(
            region, dtype=torch.uint8, offset=offset, count=storage.nbytes()
        ).untyped_storage()

    def attach(self, storage: Any, place: Any, region: Region) -> None:
        """Do nothing: the pointer itself keeps the region alive."""

    def detach(self, storage: Any) -> None:
        """Do nothing."""

    def allocate(self, torch: Any, storage: Any) -> Any:
        """Return a fresh storage of the size and device of `storage`.

        Raises
        ------
        DeviceError
            If there is no memory for it.
        """
        nbytes = storage.nbytes()
        try:
            return torch.UntypedStorage(nbytes, device="cpu")
        except RuntimeError as e:
            raise DeviceError(
                f"no memory to bring {nbytes} bytes back to the simulated GPU; the state stays "
                "suspended and whole"
            ) from e

    def fetch(self, torch: Any, storages: Sequence[Any], fresh: Sequence[Any]) -> None:
        """Copy the bytes of suspended storages into fresh ones."""
        for storage, block in zip(storages, fresh, strict=True):
            ctypes.memmove(block.data_ptr(), storage.data_ptr(), storage.nbytes())

    def settle(self, torch: Any) -> None:
        """Give freed heap memory back to the system, so that resident memory really falls."""
        trim_heap()

    def release(self) -> None:
        """Do nothing: no host memory is kept."""


def trim_heap() -> None:
    """Give free heap memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
