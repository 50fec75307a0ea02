"""The choice of storages by segment, on segments made up at random."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.kernel.offload.segments import Segment, choose_by_segment


@dataclass(frozen=True)
class Storage:
    address: int

    @property
    def _cdata(self) -> int:
        return self.address

    def data_ptr(self) -> int:
        return self.address


@st.composite
def allocators(draw: st.DrawFn) -> tuple[list[Segment], list[Storage], set[int]]:
    """Return segments, the storages that can move, and the starts of segments that can be freed."""
    segments, movable, free = [], [], set()
    for number in range(draw(st.integers(0, 8))):
        start, size = (number + 1) << 20, draw(st.integers(1, 16)) * 512
        blocks = [(start + i * 512, 512) for i in range(size // 512) if draw(st.booleans())]
        moves = [block for block in blocks if draw(st.integers(0, 5))]
        segments.append(Segment(start, size, tuple(blocks)))
        movable += [Storage(block[0]) for block in moves]
        if blocks and len(moves) == len(blocks):
            free.add(start)
    return segments, movable, free


@given(allocators(), st.integers(0, 40_000))
def test_whole_segments_fall_free_and_no_more_than_needed(
    allocator: tuple[list[Segment], list[Storage], set[int]], wanted: int
) -> None:
    segments, movable, free = allocator
    chosen = choose_by_segment(segments, movable, wanted)
    possible = sum(s.nbytes for s in segments if s.start in free)
    if chosen is None:
        assert possible < wanted
        return
    taken = {s.address for s in chosen}
    assert len(taken) == len(chosen)
    emptied = [s for s in segments if s.blocks and taken >= {b[0] for b in s.blocks}]
    assert {s.start for s in emptied} <= free
    assert taken == {b[0] for s in emptied for b in s.blocks}
    gain = sum(s.nbytes for s in emptied)
    assert gain >= wanted
    if emptied and wanted > 0:
        assert gain - min(s.nbytes for s in emptied) < wanted


@given(allocators(), st.integers(1, 40_000), st.data())
def test_nothing_warm_goes_while_colder_segments_suffice(
    allocator: tuple[list[Segment], list[Storage], set[int]], wanted: int, data: st.DataObject
) -> None:
    segments, movable, free = allocator
    heats = st.one_of(st.none(), st.integers(1, 3))
    last_use = {s.address: h for s in movable if (h := data.draw(heats)) is not None}
    chosen = choose_by_segment(segments, movable, wanted, last_use)
    plain = choose_by_segment(segments, movable, wanted)
    assert (chosen is None) == (plain is None)
    if not chosen:
        return

    def heat(segment: Segment) -> int:
        return max(last_use.get(block[0], 0) for block in segment.blocks)

    able = [s for s in segments if s.start in free]
    taken = {s.address for s in chosen}
    emptied = [s for s in able if taken >= {b[0] for b in s.blocks}]
    assert taken == {b[0] for s in emptied for b in s.blocks}
    warmest = max(map(heat, emptied))
    assert sum(s.nbytes for s in able if heat(s) < warmest) < wanted
    gain = sum(s.nbytes for s in emptied)
    assert gain >= wanted > gain - min(s.nbytes for s in emptied)
