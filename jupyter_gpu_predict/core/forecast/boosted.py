"""The learned model as a forecaster of a kernel's demand."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import GpuPredictError
from ..model import Quantiles
from ..trace.quantile import LEVELS, quantile
from ..trace.series import DemandSeries
from .demand_model import DemandModel
from .occupancy import MIN_PAST_STEPS, occupancy_features
from .protocol import ModelForecast, Raw, check_horizons, check_series, settle, steps_of
from .windows import window_maxima

RECENT_PEAKS = 60
"""Busy steps whose memory counts: as many as the empirical model looks at."""


class Boosted:
    """Use comes back as it did in other series; memory, when it does, is what it lately was.

    A horizon's memory is a mixture: what is held now, with the chance that no use comes, and else
    the greater of that and a recent use's.
    """

    name = "boosted"

    def __init__(self, model: DemandModel) -> None:
        self.model = model

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        """See :meth:`.protocol.Forecaster.forecast`."""
        horizons = check_horizons(horizons_s)
        check_series(series, self.name)
        if len(series) < MIN_PAST_STEPS:
            raise GpuPredictError(
                f"{self.name}: {len(series)} steps; {MIN_PAST_STEPS} are needed, another model "
                "serves"
            )
        steps = [steps_of(h, series.step_s) for h in horizons]
        features = occupancy_features(series.memory_bytes, series.need, series.step_s, steps)
        held = series.last_known_bytes() or 0.0
        raw = []
        for horizon, ahead, need in zip(
            horizons, steps, self.model.busy_within(features), strict=True
        ):
            memory = mixture(need, [held], _peaks(series, held, ahead))
            raw.append(Raw(horizon, memory.low, memory.mid, memory.high, need))
        return settle(self.name, raw)


def _peaks(series: DemandSeries, held: float, ahead: int) -> list[float]:
    """Return the most memory held in the stretches after recent busy steps began."""
    values = series.memory_bytes
    first = max(0, len(values) - RECENT_PEAKS - ahead)
    maxima = window_maxima(values[first:], min(ahead, len(values)))
    seen = [
        peak
        for peak, busy in zip(maxima, series.need[first:], strict=False)
        if busy and peak is not None
    ]
    return [max(held, peak) for peak in seen] or [held]


def mixture(probability: float, idle: Sequence[float], busy: Sequence[float]) -> Quantiles:
    """Return the quantiles of a draw from `busy` with `probability`, else from `idle`.

    `idle` values are taken to be no greater than `busy` ones. Neither may be empty.
    """
    below, above = sorted(idle), sorted(busy)
    found = []
    for level in LEVELS:
        if level <= 1 - probability:
            found.append(quantile(below, level / (1 - probability)))
        else:
            found.append(quantile(above, (level - (1 - probability)) / probability))
    return Quantiles(*found)
