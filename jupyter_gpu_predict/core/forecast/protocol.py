"""What a forecasting model is, and the form its answers take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import BadInputError
from ..model import HorizonForecast, Quantiles
from ..trace.series import DemandSeries


@dataclass(frozen=True, slots=True)
class ModelForecast:
    """A model's answer: one forecast per horizon, ascending.

    `note` says in words where the model did less than its name promises, e.g. that it answered
    for a constant series without a fit; empty otherwise.
    """

    model: str
    horizons: tuple[HorizonForecast, ...]
    note: str = ""


class Forecaster(Protocol):
    """A model that forecasts a kernel's demand from its series alone.

    The same series gives the same answer; Prophet's samples come from numpy's global generator,
    which the process that fits seeds.
    """

    name: str

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        """Forecast the demand in the seconds after the series' end.

        Parameters
        ----------
        series
            At least one step.
        horizons_s
            Horizons in seconds; the memory quantiles of a horizon are those of the *greatest*
            memory within it.

        Raises
        ------
        BadInputError
            If the series is empty or a horizon is not a positive number.
        GpuPredictError
            If the model cannot be fitted to this series.
        """


@dataclass(frozen=True, slots=True)
class Raw:
    """A horizon's figures as a model computed them, before :func:`settle`."""

    horizon_s: int
    low: float
    mid: float
    high: float
    need: float


def steps_of(horizon_s: float, step_s: float) -> int:
    """Return how many steps of a series cover a horizon."""
    return max(1, math.ceil(horizon_s / step_s))


def check_horizons(horizons_s: Iterable[int]) -> tuple[int, ...]:
    """Return the horizons ascending and without repetition.

    Raises
    ------
    BadInputError
        If there is none, or one is not a positive whole number of seconds.
    """
    checked = tuple(sorted(set(horizons_s)))
    if not checked:
        raise BadInputError("forecast: no horizon given; give seconds, e.g. 5, 60, 300")
    for horizon in checked:
        if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon <= 0:
            raise BadInputError(
                f"forecast: horizon {horizon!r} is not a positive whole number of seconds"
            )
    return checked


def check_series(series: DemandSeries, model: str) -> None:
    """Refuse an empty series.

    Raises
    ------
    BadInputError
        If `series` has no steps.
    """
    if not len(series):
        raise BadInputError(f"forecast: {model} needs a series of at least one step; use the prior")


def settle(model: str, raw: Iterable[Raw], note: str = "") -> ModelForecast:
    """Turn figures into forecasts that cannot contradict themselves.

    Quantiles are put in order and made non-negative, probabilities kept within 0 and 1. The most
    memory and the chance of a need within a longer horizon are never less than within a shorter
    one it contains: where the figures say so (other windows, sampling noise) they are lifted.
    """
    floor = (0.0, 0.0, 0.0)
    likely = 0.0
    settled = []
    for figures in sorted(raw, key=lambda r: r.horizon_s):
        ordered = sorted((figures.low, figures.mid, figures.high))
        floor = (
            max(floor[0], ordered[0]),
            max(floor[1], ordered[1]),
            max(floor[2], ordered[2]),
        )
        likely = min(1.0, max(likely, figures.need))
        settled.append(HorizonForecast(figures.horizon_s, Quantiles(*floor), likely))
    return ModelForecast(model, tuple(settled), note)
