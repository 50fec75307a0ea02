"""Forecasts for kernels with no history of their own: from other kernels, and wide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ...errors import BadInputError
from ..model import CellRun, Quantiles
from ..trace.quantile import quantiles
from ..trace.records import check_runs, end_of, touches_gpu
from ..trace.series import DemandSeries, demand_series
from .protocol import ModelForecast, Raw, check_horizons, settle, steps_of

NAME = "prior"

WIDENING = 1.5
"""Factor by which the intervals of another kernel's history are widened.

Low and high quantile move this many times as far from the median, and are at least this factor
below and above it. An assumption on the safe side, not a measured figure: no public source has
memory of several sessions of one notebook. It should be calibrated once traces exist.
"""

MAX_SESSIONS = 20

UNKNOWN_MEMORY = Quantiles(0.0, 0.0, 3.6e9)
"""Memory of a session nothing is known of, in bytes.

NotebookOS (ASPLOS'26): 70 % of sessions never use their GPU, so the median is nothing, and the 0.9
quantile of all is the .67 quantile of those that do, between 2.3 GB (0.5) and 4.6 GB (0.75).
"""

GPU_SESSIONS = 0.3
"""Share of sessions that use their GPU at all (NotebookOS)."""

NEXT_USE_S = 103.0
"""Time constant of the next use in a kernel just used: .44 within 60 s (replays of 2021 traces)."""


def choose_prior(
    notebook_runs: Sequence[CellRun], cell_runs: Sequence[CellRun]
) -> tuple[Sequence[CellRun], str]:
    """Return what history a kernel without one gets, and its name.

    The runs of the same notebook path (``"notebook"``), else those of the same cell digests
    (``"cells"``), else nothing (``"none"``).
    """
    if notebook_runs:
        return notebook_runs, "notebook"
    if cell_runs:
        return cell_runs, "cells"
    return (), "none"


def widen(memory: Quantiles, factor: float = WIDENING) -> Quantiles:
    """Return quantiles spread by `factor` around the median, see :data:`WIDENING`."""
    low = min(memory.mid - factor * (memory.mid - memory.low), memory.mid / factor)
    high = max(memory.mid + factor * (memory.high - memory.mid), memory.mid * factor)
    return Quantiles(max(0.0, low), memory.mid, high)


def prior_forecast(
    series: DemandSeries,
    prior_runs: Iterable[CellRun],
    basis: str,
    horizons_s: Sequence[int],
) -> ModelForecast:
    """Forecast a kernel's demand from the history of others.

    Basis ``"notebook"``: quantiles over windows of the earlier sessions of that notebook.
    ``"cells"``: quantiles of the peaks of the same cells elsewhere. ``"none"``: published
    statistics of notebook sessions. Intervals are widened by :data:`WIDENING`, probabilities drawn
    towards one half by one pseudo-session; what the kernel holds already lies inside the interval.

    Parameters
    ----------
    series
        What there is of the kernel's own demand; may be empty.
    prior_runs, basis
        As :func:`choose_prior` returns them.
    horizons_s
        Horizons in seconds.

    Raises
    ------
    BadInputError
        If a run is malformed or the basis is not one of the three.
    """
    horizons = check_horizons(horizons_s)
    if basis not in {"notebook", "cells", "none"}:
        raise BadInputError(f"forecast: basis {basis!r} is none of notebook, cells, none")
    runs = check_runs(prior_runs)
    if not runs or basis == "none":
        raw = _unknown(horizons)
        note = "no history: published statistics of notebook sessions"
    elif basis == "notebook":
        raw, sessions = _from_sessions(runs, series.step_s, horizons)
        note = f"{sessions} earlier sessions of this notebook, widened by {WIDENING:g}"
    else:
        raw = _from_cells(runs, horizons)
        note = f"{len(runs)} runs of the same cells elsewhere, widened by {WIDENING:g}"
    held = series.last_known_bytes()
    if held:
        raw = [
            Raw(r.horizon_s, min(r.low, held), max(r.mid, held), max(r.high, held), r.need)
            for r in raw
        ]
    return settle(NAME, raw, note)


def _raw(horizon: int, memory: Quantiles, need: float) -> Raw:
    return Raw(horizon, memory.low, memory.mid, memory.high, need)


def _next_use(horizon: int) -> float:
    return 1 - math.exp(-horizon / NEXT_USE_S)


def _unknown(horizons: Sequence[int]) -> list[Raw]:
    return [_raw(h, UNKNOWN_MEMORY, GPU_SESSIONS * _next_use(h)) for h in horizons]


def _from_cells(runs: Sequence[CellRun], horizons: Sequence[int]) -> list[Raw]:
    memory = widen(quantiles(float(run.peak_bytes) for run in runs))
    share = (sum(touches_gpu(run) for run in runs) + 0.5) / (len(runs) + 1)
    return [_raw(h, memory, share * _next_use(h)) for h in horizons]


def _from_sessions(
    runs: Sequence[CellRun], step_s: float, horizons: Sequence[int]
) -> tuple[list[Raw], int]:
    by_kernel: dict[str, list[CellRun]] = {}
    for run in runs:
        by_kernel.setdefault(run.kernel_id, []).append(run)
    latest = sorted(by_kernel.values(), key=lambda group: end_of(group[-1]))[-MAX_SESSIONS:]
    sessions = [
        demand_series((), group, now_s=max(end_of(run) for run in group), step_s=step_s)
        for group in latest
    ]
    sessions = [session for session in sessions if len(session)]
    if not sessions:
        return _unknown(horizons), 0
    raw = []
    for horizon in horizons:
        steps = steps_of(horizon, step_s)
        peaks: list[float] = []
        hits = windows = 0
        for session in sessions:
            for i in range(len(session)):
                peaks.append(max(session.memory_bytes[i : i + steps]))
                hits += max(session.need[i : i + steps])
            windows += len(session)
        # Windows of one session are alike: a session counts once, and one says nothing either way.
        need = (len(sessions) * hits / windows + 0.5) / (len(sessions) + 1)
        raw.append(_raw(horizon, widen(quantiles(peaks)), need))
    return raw, len(sessions)
