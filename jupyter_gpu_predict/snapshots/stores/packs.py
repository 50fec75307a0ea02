"""Packs: many chunks one after the other in one object, with the index at its end.

::

    chunk chunk … | index (JSON) | length and CRC-32 of the index (8 + 4 bytes) | magic (8 bytes)

With the index last a pack is written in one go, and read with one request for its last bytes.
"""

from __future__ import annotations

import json
import secrets
import struct
import time
import zlib
from collections.abc import Mapping

from ...errors import SnapshotDamagedError
from .backend import Backend

FOLDER = "packs"
SUFFIX = ".pack"
MAGIC = b"JGPPACK1"

_TRAILER = struct.Struct("<QI8s")
_FIRST_READ = 64 << 10
"""Enough for the index of some 700 chunks, so that most packs need one request."""

Index = Mapping[str, tuple[int, int]]
"""Offset and length of each chunk of a pack."""


def new_name() -> str:
    """Return a name for a pack; later ones sort last."""
    return f"{FOLDER}/{time.time_ns():016x}-{secrets.token_hex(8)}{SUFFIX}"


def footer(index: Index) -> bytes:
    """Return what follows the chunks of a pack."""
    rows = [[name, offset, nbytes] for name, (offset, nbytes) in index.items()]
    text = json.dumps({"chunks": rows}, separators=(",", ":")).encode()
    return text + _TRAILER.pack(len(text), zlib.crc32(text), MAGIC)


def read_index(backend: Backend, name: str, nbytes: int) -> dict[str, tuple[int, int]]:
    """Return the index of a pack of `nbytes` bytes.

    Raises
    ------
    FileNotFoundError
        If there is no such pack.
    SnapshotDamagedError
        If it ends in no index.
    """
    end = backend.read(name, max(0, nbytes - _FIRST_READ))
    try:
        length, crc, magic = _TRAILER.unpack(end[-_TRAILER.size :])
        if magic != MAGIC or length + _TRAILER.size > nbytes:
            raise ValueError("it has no end mark")
        if length + _TRAILER.size > len(end):
            end = backend.read(name, nbytes - length - _TRAILER.size)
        text = end[-_TRAILER.size - length : -_TRAILER.size]
        if len(text) != length or zlib.crc32(text) != crc:
            raise ValueError("its index has changed")
        limit = nbytes - length - _TRAILER.size
        index = {str(n): (int(offset), int(size)) for n, offset, size in json.loads(text)["chunks"]}
        if any(offset < 0 or size < 0 or offset + size > limit for offset, size in index.values()):
            raise ValueError("its index points outside")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise SnapshotDamagedError(
            f"{backend.shown}/{name} is damaged ({error}); snapshots that need it cannot be "
            "restored. Take new ones"
        ) from error
    return index
