"""Chunks: how state is cut into pieces, and the names that their contents give them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import re
from collections.abc import Callable
from typing import Any

from ..errors import SnapshotError

CHUNK_BYTES = 4 << 20
"""Memory is cut at multiples of this; its owner's start is the first."""

MIN_CUT_BYTES = 48 << 10
MAX_CUT_BYTES = 256 << 10
"""Streams are cut between these where their contents say so, 64 KiB apart on average."""

_STEP_BYTES = 8 << 10
_SPREAD = int.from_bytes(bytes.fromhex("9d37c35be12f856bd1a7491d6f03b5c7"), "little")
_SPREAD_BYTES = 16
_CUT = re.compile(rb"\x5a[\x00-\x03]", re.DOTALL)

_NAME = re.compile(r"(b3|s2)-[0-9a-f]{64}\Z")

Buffer = bytes | bytearray | memoryview


@functools.cache
def optional(module: str, name: str) -> Any:
    """Return a function of a package that may not be installed, else ``None``.

    Imported at its first use: a kernel that saves nothing loads nothing.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError:
        return None


def load_hashes() -> None:
    """Import what is installed now: a forked child should import nothing."""
    optional("blake3", "blake3")
    optional("xxhash", "xxh3_128_digest")


def chunk_name(data: Buffer) -> str:
    """Return the name of a chunk with these bytes: BLAKE3 where it is installed, else SHA-256.

    BLAKE3 hashes about 2.8 GB/s on one core where SHA-256 reaches 1.6 and BLAKE2b 0.7.
    """
    if (blake3 := optional("blake3", "blake3")) is not None:
        return f"b3-{blake3(data).hexdigest()}"
    return "s2-" + hashlib.sha256(data).hexdigest()


def chunk_matches(name: str, data: Buffer) -> bool:
    """Tell whether a chunk of this name has these bytes.

    Raises
    ------
    SnapshotError
        If the name is malformed or of a hash that cannot be computed here.
    """
    validate_chunk_name(name)
    if name.startswith("s2-"):
        return name == "s2-" + hashlib.sha256(data).hexdigest()
    if (blake3 := optional("blake3", "blake3")) is None:
        raise SnapshotError(
            "the snapshot was written with BLAKE3, which cannot be checked here; "
            "install the package blake3 in this kernel's environment"
        )
    return name == f"b3-{blake3(data).hexdigest()}"


def validate_chunk_name(name: str) -> str:
    """Return `name` if it can name a chunk.

    Raises
    ------
    SnapshotError
        If it is malformed.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise SnapshotError(
            f"chunk name {name!r:.80} is malformed; the manifest is not one of ours"
        )
    return name


class Cutter:
    """Cuts a stream where its contents say so, so that an insertion moves only the cuts near it.

    A cut needs a hash of the bytes before it. Multiplying a block, read as one long number, by a
    constant of 16 bytes gives one for every position at once: each byte of the product depends on
    the 16 bytes up to it and, through the carry, hardly on those before.

    Parameters
    ----------
    emit
        Called with the bytes of each piece.
    """

    def __init__(self, emit: Callable[[bytes], None]) -> None:
        self._emit = emit
        self._pending = bytearray()

    def feed(self, data: Buffer) -> None:
        """Take the next bytes of the stream."""
        pending = self._pending
        pending += data
        while len(pending) >= MAX_CUT_BYTES:
            length = _cut(pending)
            self._emit(bytes(memoryview(pending)[:length]))
            del pending[:length]

    def close(self) -> None:
        """Emit what is left."""
        while self._pending:
            length = min(_cut(self._pending), len(self._pending))
            self._emit(bytes(memoryview(self._pending)[:length]))
            del self._pending[:length]


def _cut(data: bytearray) -> int:
    """Return the length of the first piece of `data`."""
    end = min(len(data), MAX_CUT_BYTES)
    for start in range(MIN_CUT_BYTES, end, _STEP_BYTES):
        block = data[start - _SPREAD_BYTES : min(start + _STEP_BYTES, end)]
        product = int.from_bytes(block, "little") * _SPREAD
        mixed = product.to_bytes(len(block) + _SPREAD_BYTES, "little")
        found = _CUT.search(mixed, _SPREAD_BYTES, len(block))
        if found is not None:
            return start - _SPREAD_BYTES + found.end()
    return end
