"""Which storages to take so that the allocator really gives memory back.

An allocator gets memory from the device in segments and cuts them into blocks; a segment goes back
whole or not at all. One tensor left in each keeps them all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of device memory: address, bytes, and its blocks in use as (address, bytes)."""

    start: int
    nbytes: int
    blocks: tuple[tuple[int, int], ...]


def choose_by_segment(
    segments: Sequence[Segment],
    storages: Sequence[Any],
    wanted_bytes: int,
    last_use: Mapping[int, int] | None = None,
) -> list[Any] | None:
    """Return storages with which segments of at least `wanted_bytes` fall free.

    The coldest segments are taken, each as warm as the warmest storage in it. Among equals few
    bytes are moved: the segments are as few as will do, and the last one is the smallest that
    suffices. ``None`` if all that can be moved would free less.

    Parameters
    ----------
    storages
        Those that can be moved.
    last_use
        When a storage was last used, by its ``_cdata``; larger is later, absent is never.
    """
    if wanted_bytes <= 0:
        return []
    inside = _inside(segments, storages)
    by_heat: dict[int, list[Segment]] = {}
    for segment in segments:
        blocks = inside[segment.start]
        if segment.blocks and len(blocks) == len(segment.blocks):
            by_heat.setdefault(_heat(blocks, last_use), []).append(segment)
    chosen: list[Segment] = []
    missing = wanted_bytes
    for heat in sorted(by_heat):
        free = sorted(by_heat[heat], key=lambda s: s.nbytes, reverse=True)
        while free and missing > 0:
            enough = [s for s in free if s.nbytes >= missing]
            segment = enough[-1] if enough else free[0]
            free.remove(segment)
            chosen.append(segment)
            missing -= segment.nbytes
    if missing > 0:
        return None
    # What was taken first may not be needed any more once a larger one was.
    for segment in reversed(chosen.copy()):
        if missing + segment.nbytes <= 0:
            chosen.remove(segment)
            missing += segment.nbytes
    return [storage for s in chosen for some in inside[s.start].values() for storage in some]


def _heat(blocks: Mapping[tuple[int, int], list[Any]], last_use: Mapping[int, int] | None) -> int:
    if not last_use:
        return 0
    return max(last_use.get(s._cdata, 0) for some in blocks.values() for s in some)


def _inside(
    segments: Sequence[Segment], storages: Sequence[Any]
) -> Mapping[int, dict[tuple[int, int], list[Any]]]:
    """Return, for the start of each segment, the storages in each of its blocks."""
    blocks = sorted((*block, s.start) for s in segments for block in s.blocks)
    starts = [block[0] for block in blocks]
    found: dict[int, dict[tuple[int, int], list[Any]]] = {s.start: {} for s in segments}
    for storage in storages:
        place = bisect_right(starts, storage.data_ptr()) - 1
        if place >= 0:
            start, nbytes, segment = blocks[place]
            if storage.data_ptr() < start + nbytes:
                found[segment].setdefault((start, nbytes), []).append(storage)
    return found
