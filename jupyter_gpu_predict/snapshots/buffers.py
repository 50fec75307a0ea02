"""Memory that is written apart from the pickle streams: arrays' and tensors' bytes.

Every owner of memory (a numpy array that owns its data, a torch storage) gets one number, so that
it is written once however many views, variables or streams refer to it.
"""

from __future__ import annotations

import ctypes
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
    owner = mmap.mmap(-1, nbytes) if nbytes >= _MAPPED_BYTES else bytearray(nbytes)
    return owner, memoryview(owner)


def loaded(name: str) -> Any:
    """Return the module `name` if the user has imported it, else ``None``."""
    return sys.modules.get(name)
