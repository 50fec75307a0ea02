"""The GPUs that take new leases, in order of what is free: which suits a claim is found at once."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..model import GpuView
from .capacity import matches, risk_rank, takes_new_leases
from .entry import Entry

if TYPE_CHECKING:
    from .ledger import Ledger

_Row = tuple[int, int, int]
"""Bytes free, negative; the GPU's index; its place among the open ones."""

_Class = tuple[bool, int, bool, int]
"""Whether a claim waits for it; risk; whether it would better stay empty; tenths of a duty of 1,
the last for all above."""

_LAST_TENTH = 9


class OpenGpus:
    """GPUs that take new leases; those that a claim waits for have no room for anybody else."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.gpus = [g for g in ledger.gpus.values() if takes_new_leases(g)]
        self.smallest_bytes = min((g.total_bytes for g in self.gpus), default=0)
        self._place = {g.uuid: i for i, g in enumerate(self.gpus)}
        self._rows: dict[_Class, list[_Row]] = {}
        self._at: dict[str, tuple[_Class, _Row]] = {}
        self._for: dict[str | None, list[GpuView]] = {None: self.gpus}

    def allowed(self, affinity: str | None, size: int) -> list[GpuView]:
        """Return those that `affinity` allows and that have `size` bytes in all."""
        found = self._for.get(affinity)
        if found is None:
            found = self._for[affinity] = [g for g in self.gpus if matches(g, affinity)]
        if size <= self.smallest_bytes:
            return found
        return [g for g in found if g.total_bytes >= size]

    def best(
        self, entry: Entry, size: int, keep: Callable[[GpuView], bool] | None = None
    ) -> GpuView | None:
        """Return the GPU for `size` more bytes of a kernel that is not there, ``None`` of none.

        The lowest risk first, then the tightest fit; where the kernel's duty is known, a GPU on
        which duties sum to at most `max_duty`, with the most memory free. A GPU that would better
        stay empty comes after those that are as safe and not crowded.
        """
        self._refresh()
        duty = entry.kernel.duty
        best: tuple[tuple[int, bool, bool, int, int, int], GpuView] | None = None
        for (waited_for, risk, wakes, tenths), rows in self._rows.items():
            if waited_for and size > 0:
                continue
            found = self._first(rows, tenths, entry, size, keep)
            if found is None:
                continue
            crowded, (free, index, place) = found
            key = (risk, crowded, wakes, -free if duty is None else free, index, place)
            if best is None or key < best[0]:
                best = key, self.gpus[place]
        return None if best is None else best[1]

    def _first(
        self,
        rows: list[_Row],
        tenths: int,
        entry: Entry,
        size: int,
        keep: Callable[[GpuView], bool] | None,
    ) -> tuple[bool, _Row] | None:
        """Return the best of a class, and whether it is crowded with the kernel."""
        duty, max_duty = entry.kernel.duty, self._ledger.settings.max_duty
        all_crowded = duty is not None and tenths / 10 + duty > max_duty + 1e-9
        first: _Row | None = None
        for row in _tightest(rows, size) if duty is None else rows:
            if -row[0] < size:
                break
            gpu = self.gpus[row[2]]
            if gpu.uuid == entry.gpu_uuid or (keep is not None and not keep(gpu)):
                continue
            if not all_crowded and not (
                duty is not None and duty + self._ledger.duty(gpu.uuid) > max_duty
            ):
                return False, row
            first = first or row
            if all_crowded:
                break
        return None if first is None else (True, first)

    def _refresh(self) -> None:
        ledger = self._ledger
        for uuid in ledger.changed:
            place = self._place.get(uuid)
            if place is None:
                continue
            if uuid in self._at:
                former, row = self._at.pop(uuid)
                rows = self._rows[former]
                del rows[bisect_left(rows, row)]
            gpu = self.gpus[place]
            wakes = ledger.settings.consolidate and ledger.is_empty(gpu)
            tenths = int(min(_LAST_TENTH, 10 * ledger.duty(uuid)))
            row = (-ledger.free[uuid], gpu.index, place)
            kind = (uuid in ledger.blocked, risk_rank(gpu), wakes, tenths)
            self._at[uuid] = kind, row
            insort(self._rows.setdefault(kind, []), row)
        ledger.changed.clear()


def _tightest(rows: list[_Row], size: int) -> Iterator[_Row]:
    """Yield rows with at least `size` bytes free, the least free first, each equal by index."""
    end = bisect_right(rows, (-size, sys.maxsize, sys.maxsize))
    while end:
        begin = bisect_left(rows, (rows[end - 1][0], -sys.maxsize, 0))
        yield from rows[begin:end]
        end = begin
