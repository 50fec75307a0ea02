"""The notebook's content beside the timing of a kernel's demand: which of them serves what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..model import Forecast, HorizonForecast, NeedForecast, Quantiles
from .content import NAME, ContentForecast, Situation
from .live import MIN_OUTCOMES, Score
from .selection import with_needs

NOTHING = Quantiles(0.0, 0.0, 0.0)


def known_peaks(situation: Situation) -> Situation:
    """Return a situation in which a cell whose peak nobody has seen adds no memory.

    What is set aside must rest on what was measured; a guess from statistics of other notebooks is
    as large as a GPU.
    """
    demands = [
        replace(d, peak_bytes=NOTHING) if d.basis == "source" else d for d in situation.demands
    ]
    return replace(situation, demands=demands)


def with_content(forecast: Forecast, said: ContentForecast) -> Forecast:
    """Return a forecast by timing with what the notebook's content says, which serves P(needed).

    Parameters
    ----------
    forecast
        As :func:`.selection.make_forecast` makes it.
    said
        For :func:`known_peaks` of the kernel's situation, at the same horizons.
    """
    need = NeedForecast(NAME, tuple(h.need_probability for h in said.horizons))
    horizons = tuple(
        replace(by_time, memory_bytes=_larger(by_time, by_cell))
        for by_time, by_cell in zip(forecast.horizons, said.horizons, strict=True)
    )
    notes = [f"{NAME}: {note}" for note in said.notes]
    if horizons != forecast.horizons:
        notes.append(f"{NAME}: memory raised to what the cells that may come took before")
    return replace(
        forecast,
        horizons=with_needs(horizons, need.probabilities),
        notes=(*forecast.notes, *notes),
        need_model=NAME,
        needs=(*forecast.needs, need),
        next_cells=said.next_cells,
        next_s=said.next_s,
        burst_s=said.burst_s,
    )


def _larger(by_time: HorizonForecast, by_cell: HorizonForecast) -> Quantiles:
    """Return the larger memory, quantile by quantile.

    The series knows what the kernel usually holds, the cells what each of them takes; a cell that
    gets less than it takes waits in its middle, one that gets more gives it back under pressure.
    """
    one, other = by_time.memory_bytes, by_cell.memory_bytes
    return Quantiles(max(one.low, other.low), max(one.mid, other.mid), max(one.high, other.high))


def choose_need(forecast: Forecast, scores: Mapping[str, Score]) -> Forecast:
    """Return the forecast with P(GPU needed) of the model that has done best for this kernel.

    Before :data:`.live.MIN_OUTCOMES` outcomes the content serves, where there is any: it was fitted
    on other notebooks, and timing alone predicts little.

    Parameters
    ----------
    forecast
        With the models' `needs`.
    scores
        How each has done, see :class:`.live.LiveScores`.
    """
    needs = []
    for need in forecast.needs:
        score = scores.get(kind_of(need.model), Score())
        needs.append(replace(need, brier=score.brier, outcomes=score.outcomes))
    if len(needs) < 2:
        return replace(forecast, needs=tuple(needs))
    if all(need.outcomes >= MIN_OUTCOMES for need in needs):
        serves = min(needs, key=lambda need: need.brier or 0.0)
        notes = forecast.notes
    else:
        serves = next(need for need in needs if need.model == NAME)
        seen = f"{serves.outcomes} of {MIN_OUTCOMES} outcomes that a choice by them takes"
        notes = (*forecast.notes, f"P(needed) by {NAME}: {seen}")
    return replace(
        forecast,
        horizons=with_needs(forecast.horizons, serves.probabilities),
        notes=notes,
        need_model=serves.model,
        needs=tuple(needs),
    )


def kind_of(model: str) -> str:
    """Return what a model is scored as: which timing model serves changes with each backtest."""
    return NAME if model == NAME else "timing"
