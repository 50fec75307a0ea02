"""Quantiles of the recent past."""

from __future__ import annotations

from collections.abc import Sequence

from ..trace.quantile import quantiles
from ..trace.series import DemandSeries
from .protocol import ModelForecast, Raw, check_horizons, check_series, settle, steps_of
from .windows import (
    steps_since_need,
    stretch,
    usable_steps,
    window_maxima,
    windows_with_need,
)

RECENT = 60
"""Windows the memory quantiles are taken from: 5 minutes of steps."""

AGE_EDGES = (0, 6, 12, 24, 60, 120)
"""Upper ends, in steps, of the classes of "time since the last need": now, 30 s, 1, 2, 5, 10 min.

The chance of a next use falls with the time since the last one (field data: .44 within 60 s of
a use, .17 after 5 idle minutes, .03 after 20).
"""

MIN_IN_CLASS = 12
"""Windows a class must hold before it is used instead of all windows."""


class Empirical:
    """The near future is a draw from the recent past.

    The memory quantiles of a horizon are those of its latest 60 complete windows. The need
    probability is the share of all windows with a need, among those that began as long after the
    last need as now where there are enough of them.
    """

    name = "empirical"

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        """See :meth:`.protocol.Forecaster.forecast`."""
        horizons = check_horizons(horizons_s)
        check_series(series, self.name)
        ages = [_age_class(age) for age in steps_since_need(series.need)]
        raw = []
        for horizon in horizons:
            wanted = steps_of(horizon, series.step_s)
            steps = usable_steps(len(series), wanted)
            maxima = window_maxima(series.memory_bytes[-(RECENT + steps - 1) :], steps)
            memory = quantiles([peak for peak in maxima if peak is not None] or [0.0])
            need = _need(series.need, ages, steps, wanted)
            raw.append(Raw(horizon, memory.low, memory.mid, memory.high, need))
        return settle(self.name, raw)


def _age_class(age: int | None) -> int:
    if age is None:
        return len(AGE_EDGES) + 1
    return sum(age > edge for edge in AGE_EDGES)


def _need(need: Sequence[int], ages: Sequence[int], steps: int, wanted: int) -> float:
    hits = windows_with_need(need, steps)
    alike = [hit for age, hit in zip(ages, hits, strict=False) if age == ages[-1]]
    counted = alike if len(alike) >= MIN_IN_CLASS else hits
    share = stretch(sum(counted) / len(counted), steps, wanted)
    # Jeffreys' prior: never certain because of a handful of windows.
    return (share * len(counted) + 0.5) / (len(counted) + 1)
