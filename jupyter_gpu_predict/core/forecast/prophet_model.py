"""Prophet, fitted to a kernel's memory and to its need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...errors import GpuPredictError
from ..model import HorizonForecast
from ..trace.series import DemandSeries
from .empirical import Empirical
from .protocol import ModelForecast, Raw, check_horizons, check_series, settle, steps_of
from .windows import known_memory, stretch, usable_steps, windows_with_need

MIN_FIT_STEPS = 8
"""Known steps a fit needs: below it even a flat trend and its noise are guesswork."""

UNCERTAINTY_SAMPLES = 200
"""Sampled paths behind the interval; more costs time and changes the third digit."""

CHANGEPOINTS = 10

TREND_FACTOR = 2.0
"""A series has a trend where its last third differs from its first by this many deviations."""

TREND_REACH = 4
"""A trend is carried on for a quarter of the time it was learned from, then held."""

OPTIMISER = "LBFGS"
"""Prophet takes Newton's method below 100 points, which was seen to need 2 s where this needs 0.05.

The two agree to three digits on flat trends; on a failure Prophet itself falls back on Newton.
"""

ITERATIONS = 1000


class ProphetModel:
    """Prophet with a flat trend, or a piecewise linear one where the series drifts.

    The memory quantiles of a horizon are the greatest of Prophet's quantiles over its steps, i.e.
    the errors of one path are taken to go together: a kernel's memory is a level that stays, not
    noise around a line. The need of a step is Prophet's fit of the 0/1 need; it is carried over to
    a horizon by the number of independent steps that explains how often windows of that length
    held a need.

    Constant and too short series are answered without a fit, and the note says so.
    """

    name = "prophet"

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        """See :meth:`.protocol.Forecaster.forecast`."""
        horizons = check_horizons(horizons_s)
        check_series(series, self.name)
        known = known_memory(series)
        if len(known) < MIN_FIT_STEPS:
            stand_in = Empirical().forecast(series, horizons).horizons
            return ModelForecast(
                self.name,
                stand_in,
                f"not fitted: {len(known)} known steps, {MIN_FIT_STEPS} needed; "
                "quantiles of the steps so far",
            )
        ahead = steps_of(horizons[-1], series.step_s)
        notes = []
        if max(known) == min(known):
            notes.append("memory is constant: not fitted")
            paths = ([known[0]] * ahead,) * 3
        else:
            paths = _fit(series, series.memory_bytes, ahead, UNCERTAINTY_SAMPLES)
        if len(set(series.need)) == 1:
            notes.append("need is constant: not fitted")
            needs = _constant_need(series, horizons)
        else:
            rates = _fit(series, series.need, ahead, 0)[1]
            needs = _fitted_need(series, horizons, rates)
        raw = []
        for horizon, need in zip(horizons, needs, strict=True):
            steps = steps_of(horizon, series.step_s)
            low, mid, high = (max(0.0, *path[:steps]) for path in paths)
            raw.append(Raw(horizon, low, mid, high, need))
        return settle(self.name, raw, "; ".join(notes))


def _fit(
    series: DemandSeries, values: Sequence[float], ahead: int, samples: int
) -> tuple[list[float], list[float], list[float]]:
    """Fit Prophet and return the quantiles of the `ahead` steps after the series.

    With no `samples` all three are the expected value. A flat forecast is the same in all steps.
    """
    try:
        import pandas as pd
        from prophet import Prophet
    except ImportError as error:
        raise GpuPredictError(
            f"prophet cannot be imported ({error}); reinstall it with pip install prophet"
        ) from error

    def frame(first: int, y: Sequence[float] | None, steps: int) -> Any:
        starts = [series.start_s + i * series.step_s for i in range(first, first + steps)]
        columns: dict[str, Any] = {"ds": pd.to_datetime(starts, unit="s")}
        if y is not None:
            columns["y"] = y
        return pd.DataFrame(columns)

    drifts = _drifts([value for value in values if not math.isnan(value)])
    reach = min(ahead, max(1, len(series) // TREND_REACH)) if drifts else 1
    model = Prophet(
        growth="linear" if drifts else "flat",
        n_changepoints=CHANGEPOINTS if drifts else 0,
        # A series is shorter than one of these periods.
        daily_seasonality=False,
        weekly_seasonality=False,
        yearly_seasonality=False,
        interval_width=0.8,
        uncertainty_samples=samples,
    )
    try:
        model.fit(frame(0, values, len(series)).dropna(), algorithm=OPTIMISER, iter=ITERATIONS)
        found = model.predict(frame(len(series), None, reach))
    except (RuntimeError, ValueError, ArithmeticError) as error:
        raise GpuPredictError(
            f"prophet could not be fitted to {len(series)} steps: {error}; another model serves"
        ) from error

    def path(column: str) -> list[float]:
        found_values = [float(value) for value in found[column]]
        return found_values + found_values[-1:] * (ahead - reach)

    mid = path("yhat")
    return (path("yhat_lower"), mid, path("yhat_upper")) if samples else (mid, mid, mid)


def _drifts(values: Sequence[float]) -> bool:
    """Tell whether the last third lies apart from the first by more than they scatter."""
    third = len(values) // 3
    if third < 2:
        return False
    early, late = values[:third], values[-third:]
    means = [math.fsum(part) / third for part in (early, late)]
    spread = math.fsum(
        (value - mean) ** 2
        for part, mean in zip((early, late), means, strict=True)
        for value in part
    )
    return abs(means[1] - means[0]) > TREND_FACTOR * math.sqrt(spread / (2 * third))


def _constant_need(series: DemandSeries, horizons: Sequence[int]) -> list[float]:
    seen: Sequence[HorizonForecast] = Empirical().forecast(series, horizons).horizons
    return [h.need_probability for h in seen]


def _fitted_need(
    series: DemandSeries, horizons: Sequence[int], rates: Sequence[float]
) -> list[float]:
    mean = sum(series.need) / len(series)
    floor = 1 / (len(series) + 1)
    needs = []
    for horizon in horizons:
        wanted = steps_of(horizon, series.step_s)
        steps = usable_steps(len(series), wanted)
        hits = windows_with_need(series.need, steps)
        share = (sum(hits) + 0.5) / (len(hits) + 1)
        # `share` = 1 - (1 - mean) ** independent; uses come in bursts, so it is less than `steps`.
        independent = math.log(1 - share) / math.log(1 - mean)
        expected = sum(rates[:wanted]) / wanted
        rate = min(max(expected, floor), 1 - floor)
        need = stretch(1 - math.pow(1 - rate, independent), steps, wanted)
        needs.append(min(need, (len(hits) + 0.5) / (len(hits) + 1)))
    return needs
