"""What a replay is judged by: delays, their intervals, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .engine import Outcome
from .traces import Array

LONG_S = 40 * 60.0
"""A burst of this length or more is a long one."""

SHORTEST_S = 10.0
"""Delays are compared with durations no shorter than this."""

UNITS = {
    "mean": "s",
    "p50": "s",
    "p95": "s",
    "p99": "s",
    "XS": "1",
    "long slowdown": "1",
    "no delay": "1",
    "idle held": "GPU h",
    "idle beside a waiter": "GPU s",
    "switching / work": "1",
    "evictions": "1",
    "halts": "1",
    "moves": "1",
    "brought back ahead": "1",
    "brought back for nothing": "1",
    "bursts": "1",
    "events": "1",
    "decisions": "1",
}
"""Units of the figures of one replay, in the order in which they are shown."""


def figures(outcome: Outcome) -> dict[str, float]:
    """Return the figures of one replay; see `UNITS`.

    A burst's delay is how much later it ended than on a GPU of its own. ``XS`` is the mean of
    delay / max(work, 10 s); ``no delay`` the share of bursts below 1 ms of it.
    """
    delay, work = np.array(outcome.delay_s), np.array(outcome.work_s)
    long = work >= LONG_S
    p50, p95, p99 = np.percentile(delay, (50, 95, 99)).tolist()
    values = (
        delay.mean(),
        p50,
        p95,
        p99,
        (delay / np.maximum(work, SHORTEST_S)).mean(),
        1.0 + (delay[long] / work[long]).mean() if long.any() else np.nan,
        (delay < 1e-3).mean(),
        outcome.idle_held_s / 3600,
        outcome.beside_s,
        outcome.switch_s / work.sum(),
        outcome.evictions,
        outcome.halts,
        outcome.moves,
        outcome.brought_back,
        outcome.wrongly,
        len(delay),
        outcome.events,
        outcome.decisions,
    )
    return {name: float(value) for name, value in zip(UNITS, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def paired(
    ours: Sequence[float],
    theirs: Sequence[float],
    statistic: Callable[[Array, Array], Array],
    *,
    rounds: int = 2000,
) -> Interval:
    """Return a statistic of two policies' means over the same seeds, which are drawn in pairs.

    Seeds of which either has no value are left out.
    """
    a, b = np.array(ours, dtype=float), np.array(theirs, dtype=float)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if not len(a):
        return Interval(np.nan, np.nan, np.nan)
    which = np.random.default_rng(0).integers(len(a), size=(rounds, len(a)))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(a.mean(), b.mean()))
        drawn = statistic(a[which].mean(axis=1), b[which].mean(axis=1))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, (2.5, 97.5)).tolist() if len(drawn) else (np.nan, np.nan)
    return Interval(value, low, high)


def ratio(ours: Any, theirs: Any) -> Any:
    """Return the ratio of two values or arrays; nothing to nothing is 1."""
    return np.where((ours == 0) & (theirs == 0), 1.0, np.divide(ours, theirs))


def difference(ours: Any, theirs: Any) -> Any:
    """Return the difference of two values or arrays."""
    return np.subtract(ours, theirs)
