"""Rolling backtest: what each model would have said earlier, against what then happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import BadInputError, GpuPredictError
from ..model import HORIZONS_S, Backtest, HorizonForecast, Quantiles
from ..trace.quantile import LEVELS
from ..trace.series import DemandSeries
from .protocol import Forecaster, check_horizons, steps_of
from .windows import known_memory

MIN_TRAIN_STEPS = 8
"""Steps a model has seen at the first origin: 40 s."""

MIN_AHEAD_STEPS = 3
"""Steps after the last origin: 15 s, so that at least the 5 s and 15 s horizons are scored."""

MIN_BACKTEST_STEPS = MIN_TRAIN_STEPS + MIN_AHEAD_STEPS + 1
"""Steps below which there is no backtest: it leaves two origins."""

SPAN_STEPS = 240
"""Origins lie within the latest 20 minutes: an older habit should not choose today's model."""

ORIGINS = 5
"""Origins of a backtest; each costs up to two Prophet fits of 40-60 ms."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Backtests of the models that could be scored, and in words what was not as named."""

    backtests: tuple[Backtest, ...]
    notes: tuple[str, ...] = ()


def choose_origins(steps: int, count: int = ORIGINS) -> tuple[int, ...]:
    """Return up to `count` evenly spaced origins; an origin is the number of steps known then.

    Empty if the series has fewer than :data:`MIN_BACKTEST_STEPS` steps.
    """
    if steps < MIN_BACKTEST_STEPS or count < 1:
        return ()
    last = steps - MIN_AHEAD_STEPS
    first = max(MIN_TRAIN_STEPS, last - SPAN_STEPS)
    if count == 1:
        return (last,)
    spread = (first + round(i * (last - first) / (count - 1)) for i in range(count))
    return tuple(sorted(set(spread)))


def pinball_loss(actual: float, forecast: Quantiles) -> float:
    """Return the mean pinball loss of the three quantiles (Koenker & Bassett 1978)."""
    losses = (
        max(level * (actual - value), (level - 1) * (actual - value))
        for level, value in zip(LEVELS, (forecast.low, forecast.mid, forecast.high), strict=True)
    )
    return math.fsum(losses) / len(LEVELS)


@dataclass(slots=True)
class _Tally:
    pinball: float = 0.0
    inside: int = 0
    brier: float = 0.0
    memories: int = 0
    needs: int = 0

    def add(self, series: DemandSeries, origin: int, said: HorizonForecast, scale: float) -> None:
        steps = steps_of(said.horizon_s, series.step_s)
        if origin + steps > len(series):
            return
        needed = max(series.need[origin : origin + steps])
        self.brier += (said.need_probability - needed) ** 2
        self.needs += 1
        window = series.memory_bytes[origin : origin + steps]
        known = [value for value in window if not math.isnan(value)]
        if not known:
            return
        actual, memory = max(known), said.memory_bytes
        slack = 1e-9 * scale
        self.pinball += pinball_loss(actual, memory) / scale
        self.inside += memory.low - slack <= actual <= memory.high + slack
        self.memories += 1

    def result(self, model: str, origins: int) -> Backtest | None:
        if not self.memories or not self.needs:
            return None
        return Backtest(
            model=model,
            pinball=self.pinball / self.memories,
            coverage=self.inside / self.memories,
            brier=self.brier / self.needs,
            origins=origins,
        )


def score(
    series: DemandSeries,
    models: Sequence[Forecaster],
    origins: Sequence[int],
    horizons_s: Sequence[int] = HORIZONS_S,
) -> Scores:
    """Score the models at the same origins and horizons.

    A horizon counts at an origin where the series goes on that long. The pinball loss is in units
    of the greatest memory of the series. A model that cannot be fitted at one of the origins gets
    no score, and a note instead.

    Raises
    ------
    BadInputError
        If an origin leaves nothing before or after it.
    """
    horizons = check_horizons(horizons_s)
    for origin in origins:
        if not 0 < origin < len(series):
            raise BadInputError(
                f"backtest: origin {origin} is not inside a series of {len(series)} steps"
            )
    scale = max(known_memory(series), default=0.0) or 1.0
    backtests, notes = [], []
    for model in models:
        tally = _Tally()
        try:
            for origin in origins:
                said = model.forecast(series.first(origin), horizons)
                if said.note:
                    notes.append(f"{model.name} in the backtest: {said.note}")
                for horizon in said.horizons:
                    tally.add(series, origin, horizon, scale)
        except BadInputError:
            raise
        except GpuPredictError as error:
            notes.append(f"{model.name}: {error}")
            continue
        result = tally.result(model.name, len(origins))
        if result is not None:
            backtests.append(result)
    return Scores(tuple(backtests), tuple(dict.fromkeys(notes)))


def backtest(
    series: DemandSeries,
    models: Sequence[Forecaster],
    origins: Sequence[int],
    horizons_s: Sequence[int] = HORIZONS_S,
) -> tuple[Backtest, ...]:
    """Return the scores of :func:`score` alone."""
    return score(series, models, origins, horizons_s).backtests
