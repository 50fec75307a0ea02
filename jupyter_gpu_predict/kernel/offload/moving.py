"""Moving the bytes of storages to the host and back, chunk by chunk, under living tensors."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ...errors import DeviceError, GpuPredictError, RefusedError
from .region import Region
from .segments import Segment
from .staging import Chunk

SETTLE_BYTES = 256 << 20
"""Freed memory goes back to the device each time so much has been moved, and a quarter of all:
a heap goes through whatever is free in it each time."""


class Adapter(Protocol):
    """What differs between devices."""

    device: str

    def quiesce(self, torch: Any, storages: Sequence[Any]) -> None:
        """Wait until nothing in flight uses an address that is about to change."""

    def segments(self, torch: Any) -> list[Segment]:
        """Return what the allocator has of the device, as far as it keeps account."""

    def plan(
        self, torch: Any, storages: Sequence[Any], last_use: Callable[[], Mapping[int, int]]
    ) -> list[Chunk]:
        """Choose where on the host each storage goes; refuses what has no room."""

    def reserve(self, torch: Any, chunks: Sequence[Chunk]) -> Sequence[Any]:
        """Set a place aside for each chunk; refuses what has no room."""

    def copy_out(self, torch: Any, chunk: Chunk, place: Any) -> Callable[[], Region]:
        """Begin to copy a chunk; the function that is returned waits for the end of it."""

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage of `storage`'s size and device that points into `region`."""

    def attach(self, storage: Any, place: Any, region: Region) -> None:
        """Keep `region` alive for as long as `storage` points into it."""

    def detach(self, storage: Any) -> None:
        """Let the storage's region go."""

    def allocate(self, torch: Any, storage: Any) -> Any:
        """Return a fresh storage of the size and device of `storage`."""

    def fetch(self, torch: Any, storages: Sequence[Any], fresh: Sequence[Any]) -> None:
        """Copy the bytes of suspended storages into fresh ones."""

    def settle(self, torch: Any) -> None:
        """Give freed memory back, so that others can have it."""

    def release(self) -> None:
        """Give back the host memory that is kept for the next time."""


def move_out(
    adapter: Adapter,
    torch: Any,
    storages: Sequence[Any],
    last_use: Callable[[], Mapping[int, int]],
    note: Callable[[Sequence[Any], Sequence[int]], None],
) -> int:
    """Move storages to the host; return how many of their bytes went to disk.

    All that can lack is had before anything moves. From then on the memory of some chunks falls
    free while later ones are copied.

    Parameters
    ----------
    note
        Is told the storages of a chunk and their addresses there just before they point there.

    Raises
    ------
    StorageFullError, RefusedError, DeviceError
        Nothing was changed, or the message says what had been moved and could not come back.
    """
    moved: list[Any] = []
    freeing = _Freeing(adapter, torch, max(SETTLE_BYTES, sum(s.nbytes() for s in storages) // 4))

    def swap(chunk: Chunk, place: Any, finish: Callable[[], Region]) -> None:
        try:
            region = finish()
        except RuntimeError as e:
            raise DeviceError(f"the GPU failed while its memory was copied: {e}") from e
        aliases = [
            adapter.alias(torch, region, offset, storage)
            for storage, offset in zip(chunk.storages, chunk.offsets, strict=True)
        ]
        note(chunk.storages, [a.data_ptr() for a in aliases])
        for storage in chunk.storages:
            adapter.attach(storage, place, region)
        try:
            swap_all(torch, chunk.storages, aliases)
        except BaseException:
            for storage in chunk.storages:
                adapter.detach(storage)
            raise
        moved.extend(chunk.storages)
        freeing.add(aliases, chunk.nbytes)

    with bare(torch):
        try:
            adapter.quiesce(torch, storages)
            chunks = adapter.plan(torch, storages, last_use)
            places = adapter.reserve(torch, chunks)
        except GpuPredictError as e:
            e.args = (f"{e}; everything stays on the device",)
            raise
        try:
            copied: tuple[Chunk, Any, Callable[[], Region]] | None = None
            for chunk, place in zip(chunks, places, strict=True):
                copying = chunk, place, _begin(adapter, torch, chunk, place)
                if copied is not None:
                    swap(*copied)
                copied = copying
            if copied is not None:
                swap(*copied)
        except BaseException as error:
            freeing.finish()
            _undo(adapter, torch, moved, error)
            raise
        freeing.finish()
    return sum(int(s.nbytes()) for c in chunks if c.on_disk for s in c.storages)


class _Freeing:
    """Frees memory that was moved out, in a thread, while the next chunk is copied."""

    def __init__(self, adapter: Adapter, torch: Any, settle_bytes: int) -> None:
        self._adapter, self._torch = adapter, torch
        self._settle_bytes = settle_bytes
        self._blocks: list[Any] = []
        self._nbytes = 0
        self._thread: threading.Thread | None = None

    def add(self, blocks: list[Any], nbytes: int) -> None:
        """Take over storages that hold memory which nothing else refers to any more."""
        self._blocks += blocks
        blocks.clear()
        self._nbytes += nbytes
        if self._nbytes >= self._settle_bytes:
            self._begin()

    def finish(self) -> None:
        """Return when all is free."""
        self._begin()
        self._wait()

    def _begin(self) -> None:
        self._wait()
        blocks, self._blocks, self._nbytes = self._blocks, [], 0
        self._thread = threading.Thread(
            target=self._free, args=(blocks,), name="jupyter-gpu-predict-free", daemon=True
        )
        self._thread.start()

    def _free(self, blocks: list[Any]) -> None:
        blocks.clear()
        self._adapter.settle(self._torch)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def _begin(adapter: Adapter, torch: Any, chunk: Chunk, place: Any) -> Callable[[], Region]:
    try:
        return adapter.copy_out(torch, chunk, place)
    except RuntimeError as e:
        raise DeviceError(f"the GPU failed while its memory was copied: {e}") from e


def _undo(adapter: Adapter, torch: Any, moved: Sequence[Any], error: BaseException) -> None:
    """Bring back what had been moved, and say in the error what is where."""
    words = "everything stays on the device"
    if moved:
        try:
            move_back(adapter, torch, moved)
        except GpuPredictError as e:
            nbytes = sum(s.nbytes() for s in moved)
            words = f"{nbytes} bytes are whole in host memory, the rest is on the device ({e})"
    if isinstance(error, GpuPredictError):
        error.args = (f"{error}; {words}",)


def move_back(adapter: Adapter, torch: Any, storages: Sequence[Any]) -> None:
    """Bring storages back to the device.

    Raises
    ------
    DeviceError
        If the device has no room or fails. Nothing was changed.
    """
    with bare(torch):
        fresh: list[Any] = []
        try:
            for storage in storages:
                fresh.append(adapter.allocate(torch, storage))  # noqa: PERF401 - seen if cut
            adapter.quiesce(torch, storages)
            adapter.fetch(torch, storages, fresh)
            adapter.quiesce(torch, storages)
        except BaseException as error:
            # What was there is somebody else's again, and not kept in the allocator's cache.
            fresh.clear()
            adapter.settle(torch)
            if isinstance(error, RuntimeError):
                raise DeviceError(
                    f"the GPU failed while state was brought back: {error}; the state stays "
                    "suspended and whole"
                ) from error
            raise
        swap_all(torch, storages, fresh)
        fresh.clear()
        for storage in storages:
            adapter.detach(storage)


def swap_all(torch: Any, storages: Sequence[Any], others: Sequence[Any]) -> None:
    """Exchange the pointers pairwise, all or none.

    The loop runs in C: no signal handler and no other thread gets in between two swaps.

    Raises
    ------
    RefusedError
        If torch would not swap one of them.
    """
    swap = torch._C.StorageBase._swap_data_ptr_
    pointers = [s.data_ptr() for s in storages]
    try:
        deque(map(swap, storages, others), maxlen=0)
    except BaseException as e:
        for storage, other, pointer in zip(storages, others, pointers, strict=True):
            if storage.data_ptr() != pointer:
                swap(storage, other)
        if isinstance(e, RuntimeError):
            raise RefusedError(f"torch would not swap a storage's memory: {e}") from e
        raise


@contextlib.contextmanager
def bare(torch: Any) -> Iterator[None]:
    """Keep the user's modes and subclasses out of what is done to the memory."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        yield
