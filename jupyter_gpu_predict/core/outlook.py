"""The words of a forecast; `model.py` has them too, beside the others."""

from __future__ import annotations

from dataclasses import dataclass

HORIZONS_S: tuple[int, ...] = (5, 15, 30, 60, 300)
"""Horizons of a forecast in seconds."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Quantiles 0.1, 0.5 and 0.9 of a quantity."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True, slots=True)
class HorizonForecast:
    """Forecast for the next `horizon_s` seconds.

    `memory_bytes` is the peak device memory the kernel will want within the horizon,
    `need_probability` the chance that it runs GPU work within the horizon.
    """

    horizon_s: int
    memory_bytes: Quantiles
    need_probability: float


@dataclass(frozen=True, slots=True)
class Backtest:
    """Score of one model over rolling origins.

    `pinball` is the mean pinball loss of the memory quantiles in units of the series' scale,
    `coverage` the share of actual values inside the nominal 80 % interval, `brier` the Brier
    score of the need probability.
    """

    model: str
    pinball: float
    coverage: float
    brier: float
    origins: int


@dataclass(frozen=True, slots=True)
class NextCell:
    """A cell that may be the next to run, and the chance that it is.

    `position` is its place among the notebook's code cells, from 0; `line` the first line of its
    source, empty where it is not known.
    """

    position: int
    probability: float
    cell_id: str | None = None
    line: str = ""


@dataclass(frozen=True, slots=True)
class NeedForecast:
    """What one model says of P(GPU needed), one value for each horizon of the forecast.

    `brier` is the mean squared error of what its kind (the notebook's content, or timing) said of
    this kernel before, over `outcomes` idle moments; ``None`` before the first.
    """

    model: str
    probabilities: tuple[float, ...]
    brier: float | None = None
    outcomes: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of one kernel's demand by the model that won its backtest.

    `basis` says what history it rests on: ``"kernel"``, ``"notebook"``, ``"cells"`` or ``"none"``.
    `backtest` is ``None`` while there is too little history for one. `notes` say in plain sentences
    what was left out, e.g. why a model was not fitted.

    `need_model` is the one of `needs` whose P(GPU needed) stands in `horizons`. `next_cells` are
    the likeliest next cells, `next_s` how soon the next one starts, and `burst_s` how long the
    first one takes that uses the GPU; both in seconds, ``None`` where the notebook is not known.
    """

    kernel_id: str
    made_s: float
    model: str
    basis: str
    horizons: tuple[HorizonForecast, ...]
    backtest: Backtest | None
    candidates: tuple[Backtest, ...]
    notes: tuple[str, ...] = ()
    need_model: str = ""
    needs: tuple[NeedForecast, ...] = ()
    next_cells: tuple[NextCell, ...] = ()
    next_s: Quantiles | None = None
    burst_s: Quantiles | None = None

    def need_probability(self, horizon_s: float) -> float:
        """Return P(GPU needed) within the shortest horizon that covers `horizon_s`."""
        for h in self.horizons:
            if h.horizon_s >= horizon_s:
                return h.need_probability
        return self.horizons[-1].need_probability if self.horizons else 0.0

    def memory_bytes(self, horizon_s: float) -> Quantiles:
        """Return the memory quantiles of the shortest horizon that covers `horizon_s`."""
        for h in self.horizons:
            if h.horizon_s >= horizon_s:
                return h.memory_bytes
        return self.horizons[-1].memory_bytes if self.horizons else Quantiles(0.0, 0.0, 0.0)
