"""What a notebook will need of a GPU, from which cell is next and what that cell needs.

P(the GPU is needed within h) is the sum, over the ways in which the next cells may go until the
first that uses the GPU, of P(this way) x P(all its delays and runs fit into h). A way has at most
:data:`DEPTH` cells: where short cells stand before the GPU's, users often run through them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from ...errors import BadInputError, ModelFileError
from ..model import HORIZONS_S, HorizonForecast, NextCell, Quantiles
from ..trace.document import Trail
from ..trace.quantile import LEVELS
from ..trace.records import check_number
from .delay import EDGES_S, Delay, DelayModel, Moment
from .demand import CellDemand
from .next_cell import NextCellModel
from .protocol import Raw, check_horizons, settle

NAME = "content"
VERSION = 1

DEPTH = 3
WIDTH = (3, 2)
"""Cells that are followed further at the first step and at the second, the likeliest ones."""

SHOWN = 5

_SHARES = (0.3, 0.4, 0.3)
"""Weights of the quantiles .1, .5 and .9 that stand for a distribution (Swanson's rule)."""


@dataclass(frozen=True, slots=True)
class ContentModel:
    """The two fitted parts: where users go, and when."""

    cells: NextCellModel
    delays: DelayModel

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ContentModel:
        """Return the model kept as a JSON object.

        Raises
        ------
        ModelFileError
            If it is of another version, or was trained on other features.
        """
        if not isinstance(record, Mapping) or record.get("version") != VERSION:
            raise ModelFileError(f"{NAME} model: not of version {VERSION}; train anew")
        parts = [record.get(part) for part in ("next_cell", "delay")]
        if not all(isinstance(part, Mapping) for part in parts):
            raise ModelFileError(f"{NAME} model: next_cell or delay is missing; train anew")
        cells, delays = parts
        return cls(NextCellModel.from_record(cells or {}), DelayModel.from_record(delays or {}))

    def to_record(self) -> dict[str, Any]:
        """Return the model as plain JSON types."""
        parts = {"next_cell": dict(self.cells.weights), "delay": dict(self.delays.weights)}
        return {"version": VERSION, **parts}


@dataclass(frozen=True, slots=True)
class Situation:
    """A kernel at a moment.

    `demands` are those of the document's cells, in order. `age_s` is how long the kernel has been
    idle; `running` is the cell that runs instead, and `busy_s` how much longer it is expected to.
    `queued` are the cells of requests that were sent already, next first; `held_bytes` is what the
    kernel holds of a GPU now.
    """

    trail: Trail
    demands: Sequence[CellDemand]
    moment: Moment
    age_s: float = 0.0
    running: int | None = None
    busy_s: float = 0.0
    queued: tuple[int, ...] = ()
    held_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class ContentForecast:
    """What a notebook will do next.

    `next_cells` are the likeliest ones, `next_s` is how soon the next one starts, in seconds;
    ``None`` where no cell is known. `burst_s` is how long the first GPU cell takes, from its
    start and be it the one that runs; ``None`` where no way leads to one.
    """

    next_cells: tuple[NextCell, ...]
    next_s: Quantiles | None
    horizons: tuple[HorizonForecast, ...]
    burst_s: Quantiles | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Way:
    """Ways that end with a GPU cell, after the same `steps` delays and `run_s` of other runs.

    `ends` are the cells and the chances of the ways to them.
    """

    steps: int
    run_s: float
    ends: tuple[tuple[int, float], ...]


def forecast_content(
    model: ContentModel, situation: Situation, horizons_s: Sequence[int] = HORIZONS_S
) -> ContentForecast:
    """Return what a notebook will do next and need of a GPU.

    Where requests are queued, their cells run one after the other without a delay.

    Raises
    ------
    BadInputError
        If there is not one demand for each cell of the document, a position is not in it, or a time
        is negative or no number.
    """
    _check(situation)
    horizons = check_horizons(horizons_s)
    trail = situation.trail
    cells = model.cells.forecast(trail, situation.queued)
    ways = list(_ways(model.cells, situation))
    delay = model.delays.forecast(situation.moment)
    arrivals = _Arrivals(
        delay,
        model.delays.forecast(replace(situation.moment, last_run_s=0.0, moved=1)),
        situation.age_s,
    )
    raw = []
    for horizon in horizons:
        reached = _weights((w, arrivals.within(w.steps, horizon - w.run_s)) for w in ways)
        need = min(1.0, sum(reached.values()))
        peaks = _atoms((weight, situation.demands[c].peak_bytes) for c, weight in reached.items())
        held = situation.held_bytes
        memory = _mixture([(1 - need, held), *((weight, max(b, held)) for weight, b in peaks)])
        raw.append(Raw(horizon, memory.low, memory.mid, memory.high, need))
    ends = _weights((way, 1.0) for way in ways)
    lengths = _atoms((weight, situation.demands[c].run_s) for c, weight in ends.items())
    notes = []
    if trail.unplaced:
        notes.append(f"{trail.unplaced} runs were of cells that are not in the document")
    if not trail.size:
        notes.append("no code cells are known of this notebook, and so no next one")
    return ContentForecast(
        next_cells=cells[:SHOWN],
        next_s=_next_s(situation, delay) if cells else None,
        horizons=settle(NAME, raw).horizons,
        burst_s=_mixture(lengths) if lengths else None,
        notes=tuple(notes),
    )


def _next_s(situation: Situation, delay: Delay) -> Quantiles:
    if situation.queued:
        return Quantiles(situation.busy_s, situation.busy_s, situation.busy_s)
    waits = (situation.busy_s + delay.quantile(level, situation.age_s) for level in LEVELS)
    return Quantiles(*waits)


# ---------------------------------------------------------------- ways


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a way has come to: what ran on it, and the chance that it went here."""

    trail: Trail
    queued: tuple[int, ...]
    run_s: float
    steps: int = 0
    chance: float = 1.0

    def after(self, cell: NextCell, demand: CellDemand, *, waited: bool) -> _Place:
        """Return the place behind a cell that ran without the GPU."""
        trail = replace(
            self.trail,
            positions=(*self.trail.positions, cell.position),
            edited=self.trail.edited - {cell.position},
            failed=False,
        )
        return _Place(
            trail=trail,
            queued=self.queued[1:],
            run_s=self.run_s + demand.run_s.mid,
            steps=self.steps + waited,
            chance=self.chance * cell.probability * (1 - demand.gpu),
        )


def _ways(model: NextCellModel, situation: Situation) -> Iterable[_Way]:
    demands, running = situation.demands, situation.running
    now = 0.0 if running is None else demands[running].gpu
    if running is not None and now:
        yield _Way(0, 0.0, ((running, now),))
    waiting = [_Place(situation.trail, situation.queued, situation.busy_s, chance=1 - now)]
    while waiting:
        place = waiting.pop()
        cells = model.forecast(place.trail, place.queued)
        waited = not place.queued
        steps = place.steps + waited
        ends = ((c.position, place.chance * c.probability * demands[c.position].gpu) for c in cells)
        yield _Way(steps, place.run_s, tuple(end for end in ends if end[1] > 0))
        if steps < DEPTH:
            followed = cells[: WIDTH[steps - 1]] if waited else cells
            places = (place.after(c, demands[c.position], waited=waited) for c in followed)
            waiting += [place for place in places if place.chance > 0]


class _Arrivals:
    """How soon several delays are over, one after the other."""

    def __init__(self, first: Delay, later: Delay, age_s: float) -> None:
        self._first, self._later, self._age_s = first, later, age_s
        self._known: dict[tuple[int, float], float] = {}

    def within(self, steps: int, horizon_s: float) -> float:
        """Return the chance that `steps` delays are over within `horizon_s` seconds."""
        if steps == 0:
            return float(horizon_s >= 0)
        if steps == 1:
            return self._first.within(horizon_s, self._age_s)
        key = (steps, horizon_s)
        if key not in self._known:
            self._known[key] = sum(
                share * self._afterwards(steps - 1, horizon_s - passed_s)
                for share, passed_s in _pieces(self._first, self._age_s, horizon_s)
            )
        return self._known[key]

    def _afterwards(self, steps: int, horizon_s: float) -> float:
        if steps == 1:
            return self._later.within(horizon_s)
        return sum(
            share * self._afterwards(steps - 1, horizon_s - passed_s)
            for share, passed_s in _pieces(self._later, 0.0, horizon_s)
        )


def _pieces(delay: Delay, age_s: float, horizon_s: float) -> Iterable[tuple[float, float]]:
    """Yield a delay's chance to end in each piece of time before the horizon, and its middle."""
    edges = [*(edge for edge in EDGES_S if edge < horizon_s), horizon_s]
    passed = [delay.within(edge, age_s) for edge in edges]
    for i in range(len(edges) - 1):
        yield passed[i + 1] - passed[i], (edges[i] + edges[i + 1]) / 2


# ---------------------------------------------------------------- quantiles


def _weights(ways: Iterable[tuple[_Way, float]]) -> dict[int, float]:
    """Return how likely each cell is the first to use the GPU, for this share of each way."""
    found: dict[int, float] = {}
    for way, share in ways:
        for cell, chance in way.ends:
            if share > 0:
                found[cell] = found.get(cell, 0.0) + share * chance
    return found


def _atoms(parts: Iterable[tuple[float, Quantiles]]) -> list[tuple[float, float]]:
    """Return weighted values that stand for a mixture of distributions."""
    return [
        (weight * share, value)
        for weight, q in parts
        for share, value in zip(_SHARES, (q.low, q.mid, q.high), strict=True)
    ]


def _mixture(atoms: Iterable[tuple[float, float]]) -> Quantiles:
    ordered = sorted((value, weight) for weight, value in atoms)
    passed = list(accumulate(weight for _, weight in ordered))
    # Rounding of the sum must not decide which value a level falls on.
    wanted = (level * passed[-1] * (1 - 1e-9) for level in LEVELS)
    return Quantiles(*(ordered[bisect_left(passed, share)][0] for share in wanted))


def _check(situation: Situation) -> None:
    if len(situation.demands) != situation.trail.size:
        raise BadInputError(
            f"{NAME}: {len(situation.demands)} demands for a document of {situation.trail.size} "
            "code cells; read the document again"
        )
    if situation.running is not None and not 0 <= situation.running < situation.trail.size:
        raise BadInputError(f"{NAME}: running cell {situation.running} is not in the document")
    for name in ("age_s", "busy_s", "held_bytes"):
        check_number(getattr(situation, name), name, "content forecast")
