"""Where on the host device memory goes: which storages lie together, in memory or on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import StorageFullError
from .host_memory import host_memory
from .region import ALIGN_BYTES

CHUNK_BYTES = 64 << 20
"""Storages are moved in chunks of about this size: the memory of one falls free while the next one
is copied. Chunks of one size are also what a pool can lend again."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Storages that lie in one region: each one's offset, and the region's size in bytes."""

    storages: tuple[Any, ...]
    offsets: tuple[int, ...]
    nbytes: int
    on_disk: bool


def chunks_of(storages: Iterable[Any], *, on_disk: bool) -> list[Chunk]:
    """Put storages together in the order of their addresses, so that segments fall free soon."""
    found: list[Chunk] = []
    some: list[Any] = []
    offsets: list[int] = []
    end = 0
    for storage in sorted(storages, key=lambda s: int(s.data_ptr())):
        span = -(-int(storage.nbytes()) // ALIGN_BYTES) * ALIGN_BYTES
        if some and end + span > CHUNK_BYTES:
            found.append(Chunk(tuple(some), tuple(offsets), end, on_disk))
            some, offsets, end = [], [], 0
        some.append(storage)
        offsets.append(end)
        end += span
    if some:
        found.append(Chunk(tuple(some), tuple(offsets), end, on_disk))
    return found


def on_disk(storages: Iterable[Any], folder: str) -> list[Chunk]:
    """Put all storages on disk.

    Raises
    ------
    StorageFullError
        If the disk has too little room.
    """
    chunks = chunks_of(storages, on_disk=True)
    _check_disk(sum(c.nbytes for c in chunks), folder, "")
    return chunks


def in_memory_first(
    storages: Sequence[Any],
    folder: str,
    last_use: Callable[[], Mapping[int, int]],
    *,
    why_no_disk: str | None = None,
    kept_bytes: int = 0,
) -> list[Chunk]:
    """Put what the host has memory for there, and the coldest rest on disk.

    Parameters
    ----------
    last_use
        Gives when a storage was last used, by its ``_cdata``; larger is later.
    why_no_disk
        Why nothing can lie on disk, ``None`` if it can.
    kept_bytes
        Bytes of host memory that are set aside for this already.

    Raises
    ------
    StorageFullError
        If memory and disk have too little room together.
    """
    room = host_memory().room_bytes + kept_bytes
    if sum(s.nbytes() for s in storages) <= room:
        return chunks_of(storages, on_disk=False)
    ranks = last_use()
    warm: list[Any] = []
    cold: list[Any] = []
    used = 0
    for storage in sorted(storages, key=lambda s: -ranks.get(s._cdata, 0)):
        nbytes = int(storage.nbytes())
        fits = not cold and used + nbytes <= room
        used += nbytes if fits else 0
        (warm if fits else cold).append(storage)
    chunks = chunks_of(cold, on_disk=True)
    total = sum(c.nbytes for c in chunks)
    short = f"the host has room for {room} bytes of device memory and {total} more are wanted; "
    if why_no_disk is not None:
        raise StorageFullError(f"{short}they cannot go to disk: {why_no_disk}; free host memory")
    _check_disk(total, folder, short)
    return chunks_of(warm, on_disk=False) + chunks


def _check_disk(nbytes: int, folder: str, before: str) -> None:
    existing = os.path.abspath(folder)
    while not os.path.exists(existing) and os.path.dirname(existing) != existing:
        existing = os.path.dirname(existing)
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise StorageFullError(
            f"{before}no room in {folder} to spill {nbytes} bytes of device memory ({free} bytes "
            "are free); free disk space or choose another spill folder"
        )
