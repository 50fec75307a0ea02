"""Cell runs and demand samples into a regular demand series."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import BadInputError
from ..model import STEP_S, CellRun, DemandSample, Outcome
from .records import check_number, check_runs, check_samples, end_of, touches_gpu

MAX_STEPS = 1000
"""Longest series a forecast looks at: 83 minutes; fitting costs grow beyond it (Prophet 1.5)."""


@dataclass(frozen=True, slots=True)
class DemandSeries:
    """A kernel's demand on a regular grid; step ``i`` covers ``start_s + i * step_s`` on.

    `memory_bytes` is the most device memory wanted within a step, used or suspended; NaN marks a
    step nothing is known of. `need` is 1 where a cell run that touches the GPU overlapped the
    step, else 0.
    """

    start_s: float
    step_s: float
    memory_bytes: tuple[float, ...]
    need: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and math.isfinite(self.step_s) and self.step_s > 0):
            raise BadInputError(
                f"demand series: start {self.start_s!r} and step {self.step_s!r} must be finite, "
                "the step positive"
            )
        if len(self.memory_bytes) != len(self.need):
            raise BadInputError(
                f"demand series: {len(self.memory_bytes)} steps of memory but {len(self.need)} of "
                "need; give both the same length"
            )
        if any(value < 0 or math.isinf(value) for value in self.memory_bytes):
            raise BadInputError("demand series: memory must be finite and not negative, or NaN")
        if any(value not in (0, 1) for value in self.need):
            raise BadInputError("demand series: need must be 0 or 1 in every step")

    def __len__(self) -> int:
        return len(self.need)

    @property
    def end_s(self) -> float:
        """End of the last step."""
        return self.start_s + len(self) * self.step_s

    def first(self, steps: int) -> DemandSeries:
        """Return the series as it was known after its first `steps` steps."""
        return DemandSeries(self.start_s, self.step_s, self.memory_bytes[:steps], self.need[:steps])

    def last_known_bytes(self) -> float | None:
        """Return the memory of the last step that is known, ``None`` if there is none."""
        return next((v for v in reversed(self.memory_bytes) if not math.isnan(v)), None)


def demand_series(
    samples: Iterable[DemandSample],
    runs: Iterable[CellRun],
    *,
    now_s: float,
    step_s: float = STEP_S,
    max_steps: int = MAX_STEPS,
) -> DemandSeries:
    """Put one kernel's samples and cell runs on a grid of whole steps that ends at `now_s`.

    Memory is carried forward between records, because kernels report changes only; a kernel holds
    nothing until a record says otherwise. During a cell run its peak counts, after it what it
    left. Records may come in any order and overlap. Records stamped up to one step after `now_s`
    count as made now (clocks of two machines differ a little); later ones are left out (the clock
    was set back). A busy sample that no finished run covers belongs to a cell that still runs.

    Parameters
    ----------
    samples, runs
        Records of one kernel.
    now_s
        End of the last step.
    step_s
        Length of a step in seconds.
    max_steps
        Older steps are left out, though what they left in memory is carried on.

    Raises
    ------
    BadInputError
        If a number in a record is negative, infinite or not a number, or the grid makes no sense.
    """
    now_s = check_number(now_s, "now_s", "demand series")
    step_s = check_number(step_s, "step_s", "demand series")
    if step_s == 0 or max_steps < 1:
        raise BadInputError("demand series: the step and the number of steps must be positive")
    latest = now_s + step_s
    known = [s for s in check_samples(samples) if s.t_s <= latest]
    past = [
        r
        for r in check_runs(runs)
        # A refused cell never ran: it says nothing of memory, and no GPU work was done.
        if r.start_s <= latest and r.outcome is not Outcome.REFUSED
    ]
    starts = [s.t_s for s in known[:1]] + [r.start_s for r in past[:1]]
    if not starts:
        return DemandSeries(now_s, step_s, (), ())
    steps = min(max_steps, max(1, math.ceil((now_s - min(starts)) / step_s)))
    grid = _Grid(now_s - steps * step_s, step_s, steps)
    memory = _levels(grid, known, past)
    need = [0] * steps
    for run in past:
        for i in grid.overlapped(run.start_s, end_of(run)):
            memory[i] = max(memory[i], float(run.peak_bytes))
            if touches_gpu(run):
                need[i] = 1
    for begin, end in _unfinished(known, past, now_s):
        for i in grid.overlapped(begin, end):
            need[i] = 1
    return DemandSeries(grid.start_s, step_s, tuple(memory), tuple(need))


@dataclass(frozen=True, slots=True)
class _Grid:
    start_s: float
    step_s: float
    steps: int

    def at(self, t_s: float) -> int:
        """Return the step that holds `t_s`; negative before the grid, the last one after it."""
        return min(math.floor((t_s - self.start_s) / self.step_s), self.steps - 1)

    def overlapped(self, begin_s: float, end_s: float) -> range:
        """Return the steps that ``[begin_s, end_s)`` touches; a moment touches its own step."""
        if end_s < self.start_s or (end_s == self.start_s and begin_s < end_s):
            return range(0)
        first = max(self.at(begin_s), 0)
        last = min(math.ceil((end_s - self.start_s) / self.step_s) - 1, self.steps - 1)
        return range(first, max(first, last) + 1)


def _levels(grid: _Grid, samples: Sequence[DemandSample], runs: Sequence[CellRun]) -> list[float]:
    """Return the most memory held in each step between and after cell runs."""
    # At one moment a sample comes after a run's end: it is what was seen, the other is implied.
    changes = [(end_of(run), 0, float(run.end_bytes)) for run in runs if run.peak_source != "none"]
    changes += [(s.t_s, 1, float(s.used_bytes + s.suspended_bytes)) for s in samples]
    changes.sort(key=lambda change: change[:2])
    memory = [0.0] * grid.steps
    level, filled = 0.0, 0
    for t_s, _, value in changes:
        i = grid.at(t_s)
        if i >= 0:
            # The old level still counts in this step unless it changed right at its beginning.
            until = i + 1 if t_s > grid.start_s + i * grid.step_s else i
            for j in range(filled, until):
                memory[j] = max(memory[j], level)
            memory[i] = max(memory[i], value)
            filled = max(filled, i + 1)
        level = value
    for j in range(filled, grid.steps):
        memory[j] = level
    return memory


def _unfinished(
    samples: Sequence[DemandSample], runs: Sequence[CellRun], now_s: float
) -> list[tuple[float, float]]:
    """Return when a cell that has not ended yet was seen busy with device memory."""
    done_s = max((end_of(run) for run in runs), default=-math.inf)
    spans = []
    for i, sample in enumerate(samples):
        if sample.t_s < done_s or not sample.busy:
            continue
        if sample.used_bytes + sample.suspended_bytes > 0:
            end_s = samples[i + 1].t_s if i + 1 < len(samples) else now_s
            spans.append((sample.t_s, max(sample.t_s, end_s)))
    return spans
