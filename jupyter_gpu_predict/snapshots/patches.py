"""A stream as its former self and the difference: what moved keeps its bytes, what refers changes.

A pickle refers to what came before by number. Behind an insertion every such number has grown, so
that no piece of the stream is as it was, yet nearly all of its bytes are. Blocks of the new stream
are laid over the place in the old one that they resemble, and only the XOR of both is kept, which
compresses to little (as bsdiff does with the addresses in programs: Percival 2003, "Naive
differences of executable code").
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial

BLOCK_BYTES = 8 << 10
_ANCHOR_BYTES = 16
_ANCHORS = 6
_REACH_BYTES = 64 << 10
_UNIQUE_REACH_BYTES = 2 << 10
_UNPACKED_BYTES = 256 << 10

Blocks = list[tuple[int, int]]
"""Length of each block of the new stream, and where in the old one it lies."""


def make_patch(old: bytes, new: bytes) -> tuple[Blocks, bytes]:
    """Return where the blocks of `new` lie in `old`, and what must be added to get it."""
    blocks: Blocks = []
    differences: list[bytes] = []
    view = memoryview(new)
    shift = 0
    for start in range(0, len(new), BLOCK_BYTES):
        block = view[start : start + BLOCK_BYTES]
        shift = _find(old, bytes(block), start, shift)
        place = max(0, min(start + shift, len(old)))
        blocks.append((len(block), place))
        differences.append(_xor(block, old[place : place + len(block)]))
    return blocks, zlib.compress(b"".join(differences), 1)


def apply_patch(old: bytes | memoryview, blocks: Blocks, patch: bytes | memoryview) -> bytes:
    """Return the new stream.

    Raises
    ------
    ValueError
        If the patch does not fit the blocks.
    """

    def former(place: int, length: int) -> bytes:
        return bytes(old[place : place + length])

    return b"".join(patched_blocks(blocks, former, partial(next, iter([patch]), b"")))


def patched_blocks(
    blocks: Blocks,
    former: Callable[[int, int], bytes],
    patch: Callable[[], bytes | bytearray | memoryview],
) -> Iterator[bytes]:
    """Yield the new stream block by block.

    Parameters
    ----------
    former
        Returns the old stream's bytes from a place on, and how many; fewer where it ends.
    patch
        Returns the next piece of the patch, nothing after the last.

    Raises
    ------
    ValueError
        If the patch does not fit the blocks.
    """
    unpacker = zlib.decompressobj()
    difference = bytearray()

    def unpack(most: int) -> bool:
        packed = unpacker.unconsumed_tail or patch()
        try:
            found = unpacker.decompress(packed, most)
        except zlib.error as error:
            raise ValueError(f"the patch is damaged: {error}") from error
        difference.extend(found)
        return bool(packed or found)

    for length, place in blocks:
        while len(difference) < length:
            if not unpack(_UNPACKED_BYTES):
                raise ValueError("the patch is shorter than its blocks")
        yield _xor(difference[:length], former(place, length))
        del difference[:length]
    while not difference and unpack(1):
        pass
    if difference:
        raise ValueError("the patch is longer than its blocks")


def _find(old: bytes, block: bytes, start: int, shift: int) -> int:
    """Return by how much `block`, at `start` in the new stream, is shifted in the old one."""
    low = max(0, start + shift)
    if old[low : low + len(block)] == block:
        return shift
    votes: dict[int, int] = {}
    step = max(1, len(block) // _ANCHORS)
    for offset in range(0, len(block) - _ANCHOR_BYTES, step):
        anchor = block[offset : offset + _ANCHOR_BYTES]
        around = start + shift + offset
        for reach in (_UNIQUE_REACH_BYTES, _REACH_BYTES):
            begin = max(0, around - reach)
            found = old.find(anchor, begin, around + reach)
            if found >= 0:
                moved = found - start - offset
                votes[moved] = votes.get(moved, 0) + 1
                break
    return max(votes, key=lambda moved: votes[moved]) if votes else shift


def _xor(one: bytearray | memoryview | bytes, other: bytes) -> bytes:
    length = len(one)
    value = int.from_bytes(one, "little") ^ int.from_bytes(other[:length], "little")
    return value.to_bytes(length, "little")
