"""The last value, widened by how much demand changed before."""

from __future__ import annotations

from collections.abc import Sequence

from ..trace.quantile import quantiles
from ..trace.series import DemandSeries
from .protocol import ModelForecast, Raw, check_horizons, check_series, settle, steps_of
from .windows import last_known, stretch, usable_steps, window_maxima, windows_with_need

CHANGES = 200
"""Latest changes that widen the last value: 17 minutes at the usual step."""


class Persistence:
    """Demand stays what it is, give or take the changes seen lately.

    The memory quantiles of a horizon are the last value plus the quantiles of (greatest value of
    the next steps minus present value) over the latest origins. The need probability is the share
    of windows with a need among origins in the present state (in need or not).
    """

    name = "persistence"

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        """See :meth:`.protocol.Forecaster.forecast`."""
        horizons = check_horizons(horizons_s)
        check_series(series, self.name)
        present = last_known(series.memory_bytes)
        value = present[-1] or 0.0
        raw = []
        for horizon in horizons:
            wanted = steps_of(horizon, series.step_s)
            steps = usable_steps(len(series), wanted)
            changes = [
                ahead - before
                for before, ahead in zip(
                    present, window_maxima(series.memory_bytes, steps), strict=False
                )
                if before is not None and ahead is not None
            ][-CHANGES:]
            change = quantiles(changes or [0.0])
            raw.append(
                Raw(
                    horizon,
                    max(0.0, value + change.low),
                    max(0.0, value + change.mid),
                    max(0.0, value + change.high),
                    _need(series.need, steps, wanted),
                )
            )
        return settle(self.name, raw)


def _need(need: Sequence[int], steps: int, wanted: int) -> float:
    state = need[-1]
    hits = [
        hit
        for before, hit in zip(need, windows_with_need(need, steps)[1:], strict=False)
        if before == state
    ]
    share = stretch(sum(hits) / len(hits), steps, wanted) if hits else 0.0
    # One pseudo-observation says that the present state goes on.
    return (share * len(hits) + state) / (len(hits) + 1)
