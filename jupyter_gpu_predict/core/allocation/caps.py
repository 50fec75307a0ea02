"""What each kernel's allocator may take of a GPU, so that no two can take the same memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """A kernel on a GPU: what its lease holds and what it uses, in bytes, and if a cell runs."""

    kernel_id: str
    held_bytes: int
    used_bytes: int = 0
    running: bool = False


def caps(free_for_all_bytes: int, shares: Iterable[Share]) -> dict[str, int]:
    """Return the bytes that each kernel's allocator may take at most.

    Each keeps what its lease holds, or what it uses where that is more. What nobody holds is
    divided among the kernels that run a cell, since only they can use it; where none does, among
    all, so that the next cell to begin finds some of it. All caps together never exceed what there
    is, unless more is in use already: then nobody gets more than that.

    Parameters
    ----------
    free_for_all_bytes
        The GPU's memory without that of other programs and of kernels on their way to it.
    """
    present = sorted(shares, key=lambda s: s.kernel_id)
    floors = {s.kernel_id: max(s.held_bytes, s.used_bytes) for s in present}
    takers = [s.kernel_id for s in present if s.running] or list(floors)
    spare = max(0, free_for_all_bytes - sum(floors.values()))
    if not takers:
        return {}
    each, rest = divmod(spare, len(takers))
    for place, kernel_id in enumerate(takers):
        floors[kernel_id] += each + (place < rest)
    return floors


def in_order(told: dict[str, int], wanted: dict[str, int]) -> list[tuple[str, int]]:
    """Return the caps that differ from what was told, those that fall first.

    As long as each is in force before the next is told, the sum never passes the larger of the two.
    A kernel that was never told has none to lower, and comes last.
    """
    changed = [(k, cap) for k, cap in wanted.items() if told.get(k) != cap]
    return sorted(changed, key=lambda c: (c[0] not in told, c[1] - told.get(c[0], 0), c[0]))
