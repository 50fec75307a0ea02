"""Which model serves a kernel, and the forecast it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from ...errors import BadInputError, GpuPredictError
from ..model import HORIZONS_S, Backtest, CellRun, Forecast, HorizonForecast, NeedForecast
from ..trace.series import DemandSeries
from .backtest import MIN_BACKTEST_STEPS, choose_origins, score
from .empirical import Empirical
from .persistence import Persistence
from .prior import prior_forecast, widen
from .prophet_model import ProphetModel
from .protocol import Forecaster, ModelForecast, Raw, settle

SIMPLEST_FIRST = ("persistence", "empirical", "boosted", "prophet")
"""Order in which a tie is decided."""

TIE = 1e-6
"""Pinball losses closer than this, in units of the series' scale, are a tie."""

RESCORE_STEPS = 6
"""New steps after which the models are scored again: 30 s."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The latest backtest of one kernel; `end_s` is the end of the series it was made on."""

    basis: str
    end_s: float
    backtests: tuple[Backtest, ...]
    notes: tuple[str, ...]

    def holds_for(self, series: DemandSeries, basis: str) -> bool:
        """Tell whether too little has happened since to score the models again."""
        passed_s = series.end_s - self.end_s
        return basis == self.basis and 0 <= passed_s < RESCORE_STEPS * series.step_s


@dataclass(frozen=True, slots=True)
class Made:
    """A forecast with what has to be said about it, and the evaluation to keep for the next."""

    forecast: Forecast
    notes: tuple[str, ...]
    evaluation: Evaluation | None


def default_models() -> tuple[Forecaster, ...]:
    """Return the models of a server, simplest first."""
    return (Persistence(), Empirical(), ProphetModel())


def select(backtests: Sequence[Backtest]) -> Backtest:
    """Return the backtest of the lowest pinball loss, on a tie that of the simpler model.

    Raises
    ------
    BadInputError
        If there is none to choose from.
    """
    if not backtests:
        raise BadInputError("forecast: no model has a score to be chosen by")

    def simplicity(scored: Backtest) -> int:
        known = scored.model in SIMPLEST_FIRST
        return SIMPLEST_FIRST.index(scored.model) if known else len(SIMPLEST_FIRST)

    best = min(scored.pinball for scored in backtests)
    return min((s for s in backtests if s.pinball <= best + TIE), key=simplicity)


def make_forecast(
    kernel_id: str,
    series: DemandSeries,
    prior_runs: Sequence[CellRun],
    basis: str,
    now_s: float,
    *,
    horizons_s: Sequence[int] = HORIZONS_S,
    models: Sequence[Forecaster] | None = None,
    last: Evaluation | None = None,
) -> Made:
    """Forecast one kernel's demand by the model that wins its backtest.

    Memory comes from the model with the lowest pinball loss, P(GPU needed) from that with the
    lowest Brier score.

    A kernel of less than a minute, or one that has not used a GPU, is forecast from `prior_runs`
    where there are any. A young kernel without them is served by its own quantiles, widened.

    Parameters
    ----------
    kernel_id
        The kernel.
    series
        Its demand up to `now_s`.
    prior_runs, basis
        As :func:`.prior.choose_prior` returns them; basis ``"kernel"`` says there are none.
    now_s
        When the forecast is made.
    horizons_s
        Horizons in seconds.
    models
        The candidates; :func:`default_models` if not given.
    last
        The evaluation of an earlier call for this kernel; used again while it holds.

    Raises
    ------
    BadInputError
        If a record or the basis is malformed.
    """
    if basis not in {"kernel", "notebook", "cells", "none"}:
        raise BadInputError(
            f"forecast of kernel {kernel_id}: basis {basis!r} is none of kernel, notebook, cells, "
            "none"
        )
    used = any(series.need) or any(value > 0 for value in series.memory_bytes)
    young = len(series) < MIN_BACKTEST_STEPS
    # A query by notebook or digest returns the kernel's own runs too; they are in `series`.
    others = [run for run in prior_runs if run.kernel_id != kernel_id]
    if others and basis in {"notebook", "cells"} and (young or not used):
        said = prior_forecast(series, others, basis, horizons_s)
        return _unscored(kernel_id, said, basis, now_s)
    if not len(series):
        said = prior_forecast(series, (), "none", horizons_s)
        return _unscored(kernel_id, said, "none", now_s)
    if young:
        return _unscored(kernel_id, _own_widened(series, horizons_s), "kernel", now_s)
    candidates = {model.name: model for model in (models or default_models())}
    if last is not None and last.holds_for(series, "kernel"):
        evaluation = last
    else:
        scores = score(series, tuple(candidates.values()), choose_origins(len(series)), horizons_s)
        evaluation = Evaluation("kernel", series.end_s, scores.backtests, scores.notes)
    return _served(kernel_id, series, candidates, evaluation, now_s=now_s, horizons_s=horizons_s)


def _served(
    kernel_id: str,
    series: DemandSeries,
    candidates: dict[str, Forecaster],
    evaluation: Evaluation,
    *,
    now_s: float,
    horizons_s: Sequence[int],
) -> Made:
    """Let the best model that can be fitted now make the forecast."""
    notes = list(evaluation.notes)
    left = [scored for scored in evaluation.backtests if scored.model in candidates]
    while left:
        winner = select(left)
        try:
            said = candidates[winner.model].forecast(series, horizons_s)
        except BadInputError:
            raise
        except GpuPredictError as error:
            notes.append(f"{winner.model}: {error}")
            left.remove(winner)
            continue
        if said.note:
            notes.append(f"{winner.model}: {said.note}")
        need = _needs(series, candidates, left, said, horizons_s=horizons_s)
        forecast = Forecast(
            kernel_id=kernel_id,
            made_s=now_s,
            model=winner.model,
            basis="kernel",
            horizons=with_needs(said.horizons, need.probabilities),
            backtest=winner,
            candidates=evaluation.backtests,
            need_model=need.model,
            needs=(need,),
        )
        return Made(forecast, tuple(dict.fromkeys(notes)), evaluation)
    said = _own_widened(series, horizons_s)
    made = _unscored(kernel_id, said, "kernel", now_s)
    return Made(made.forecast, tuple(dict.fromkeys([*notes, *made.notes])), None)


def _needs(
    series: DemandSeries,
    candidates: Mapping[str, Forecaster],
    left: Sequence[Backtest],
    said: ModelForecast,
    *,
    horizons_s: Sequence[int],
) -> NeedForecast:
    """Return P(GPU needed) of the model with the lowest Brier score, else of the one that serves.

    A model that tells memory best need not be the one that tells best when it will be wanted.
    """
    best = min(left, key=lambda scored: (scored.brier, scored.model != said.model))
    if best.model != said.model:
        with suppress(GpuPredictError):
            return need_of(candidates[best.model].forecast(series, horizons_s))
    return need_of(said)


def need_of(said: ModelForecast) -> NeedForecast:
    """Return what a model says of P(GPU needed)."""
    return NeedForecast(said.model, tuple(h.need_probability for h in said.horizons))


def with_needs(
    horizons: Sequence[HorizonForecast], probabilities: Sequence[float]
) -> tuple[HorizonForecast, ...]:
    """Return the horizons with these values of P(GPU needed)."""
    pairs = zip(horizons, probabilities, strict=True)
    return tuple(replace(h, need_probability=p) for h, p in pairs)


def _unscored(kernel_id: str, said: ModelForecast, basis: str, now_s: float) -> Made:
    forecast = Forecast(
        kernel_id=kernel_id,
        made_s=now_s,
        model=said.model,
        basis=basis,
        horizons=said.horizons,
        backtest=None,
        candidates=(),
        need_model=said.model,
        needs=(need_of(said),),
    )
    notes = (f"{said.model}: {said.note}",) if said.note else ()
    return Made(forecast, notes, None)


def _own_widened(series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
    said = Empirical().forecast(series, horizons_s)
    raw = []
    for horizon in said.horizons:
        wide = widen(horizon.memory_bytes)
        raw.append(Raw(horizon.horizon_s, wide.low, wide.mid, wide.high, horizon.need_probability))
    return settle(said.model, raw, f"{len(series)} steps are too few for a backtest: widened")
