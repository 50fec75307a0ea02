"""Memory that is written apart from the pickle streams: arrays' and tensors' bytes.

Every owner of memory (a numpy array that owns its data, a torch storage) gets one number, so that
it is written once however many views, variables or streams refer to it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import SnapshotError

IN_BAND_BYTES = 4096
"""Smaller arrays and storages travel inside the stream; a table entry would cost more."""

_MAPPED_BYTES = 1 << 20

_LARGE_PAGES_FROM_BYTES = 4 << 20
_LARGE_PAGE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """Memory to be written: who owns it, how long it is and how it is to be allocated again.

    `device` says that `read` copies it to the host first.
    """

    owner: Any
    nbytes: int
    spec: Mapping[str, Any]
    read: Callable[[], memoryview]
    device: bool = False


class BufferTable:
    """The numbered memory of one capture."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.foresee: Callable[[Source], None] | None = None
        self._by_owner: dict[int | tuple[int, int], int] = {}

    def add(self, source: Source) -> int:
        """Return the number of its owner's memory, giving it one if it has none."""
        return self._number(id(source.owner), source)

    def add_exported(self, exported: pickle.PickleBuffer) -> int:
        """Return the number of memory that an object exports (PEP 574), by its address."""
        from .types_memory import address_of

        view = exported.raw()
        address = address_of(view)
        spec = {"kind": "bytes", "nbytes": len(view)}
        return self._number((address, len(view)), Source(view, len(view), spec, lambda: view))

    def _number(self, key: int | tuple[int, int], source: Source) -> int:
        index = self._by_owner.get(key)
        if index is None:
            index = self._by_owner[key] = len(self.sources)
            self.sources.append(source)
            if self.foresee is not None:
                self.foresee(source)
        return index


def raw_memory(address: int, nbytes: int) -> memoryview:
    """Return a writable view of `nbytes` bytes at `address`; the caller keeps the owner alive."""
    if nbytes == 0:
        return memoryview(bytearray())
    return memoryview((ctypes.c_char * nbytes).from_address(address)).cast("B")


def allocate(spec: Mapping[str, Any]) -> tuple[Any, memoryview]:
    """Return a new owner of memory as `spec` describes it, and the memory to be filled.

    Raises
    ------
    SnapshotError
        If the library that owns such memory cannot be imported here.
    """
    kind = spec["kind"]
    try:
        if kind == "numpy":
            import numpy as np

            # Memory that is zero by itself need not be touched where the saved one is zero too.
            array = np.zeros(tuple(spec["shape"]), np.dtype(spec["dtype"]), spec["order"])
            return array, raw_memory(array.__array_interface__["data"][0], array.nbytes)
        if kind == "torch":
            import torch

            storage = torch.UntypedStorage(spec["nbytes"])
            # numpy does so by itself.
            _ask_for_large_pages(storage.data_ptr(), spec["nbytes"])
            return storage, raw_memory(storage.data_ptr(), spec["nbytes"])
        if kind == "bytes":
            return _plain_memory(spec["nbytes"])
        from .types_memory import KINDS, allocate_memory

        if kind in KINDS:
            return allocate_memory(spec)
    except ImportError as error:
        message = f"{kind} is needed for this snapshot and cannot be imported: {error}"
        raise SnapshotError(f"{message}; install it in this kernel's environment") from error
    raise SnapshotError(f"buffer kind {kind!r} is unknown; upgrade jupyter-gpu-predict")


def _plain_memory(nbytes: int) -> tuple[Any, memoryview]:
    # A bytearray is filled with zeros first, which touches long memory once too often.
    if nbytes < _MAPPED_BYTES:
        small = bytearray(nbytes)
        return small, memoryview(small)
    # Private: what is shared would go on changing under the hands of a forked save.
    owner = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _ask_for_large_pages(ctypes.addressof(ctypes.c_char.from_buffer(owner)), nbytes)
    return owner, memoryview(owner)


def _ask_for_large_pages(address: int, nbytes: int) -> None:
    """Let the system give whole large pages of new memory: to fill it takes a third of the time."""
    start = -(-address // _LARGE_PAGE_BYTES) * _LARGE_PAGE_BYTES
    end = (address + nbytes) // _LARGE_PAGE_BYTES * _LARGE_PAGE_BYTES
    if nbytes >= _LARGE_PAGES_FROM_BYTES and (advise := _advise()) is not None:
        # A system that knows no large pages refuses, and nothing is lost.
        advise(start, end - start, mmap.MADV_HUGEPAGE)


@functools.cache
def _advise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def loaded(name: str) -> Any:
    """Return the module `name` if the user has imported it, else ``None``."""
    return sys.modules.get(name)
