from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.content import ContentModel, Situation, forecast_content
from jupyter_gpu_predict.core.forecast.delay import EDGES_S, Delay, Moment
from jupyter_gpu_predict.core.forecast.demand import CellDemand
from jupyter_gpu_predict.core.forecast.empirical import Empirical
from jupyter_gpu_predict.core.forecast.live import MIN_OUTCOMES, LiveScores, Score
from jupyter_gpu_predict.core.forecast.persistence import Persistence
from jupyter_gpu_predict.core.forecast.record import forecast_from_record, forecast_to_record
from jupyter_gpu_predict.core.forecast.selection import make_forecast
from jupyter_gpu_predict.core.forecast.serving import choose_need, known_peaks, with_content
from jupyter_gpu_predict.core.forecast.situation_record import (
    situation_from_record,
    situation_to_record,
)
from jupyter_gpu_predict.core.model import HORIZONS_S, NextCell, Quantiles
from jupyter_gpu_predict.core.trace.document import Trail
from jupyter_gpu_predict.core.trace.series import DemandSeries
from jupyter_gpu_predict.errors import BadInputError

PATH = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
MODEL = ContentModel.from_record(json.loads(PATH.read_text()))
GIB = float(1 << 30)
CPU = CellDemand(0.02)
GUESSED = CellDemand(0.95)
KNOWN = CellDemand(1.0, Quantiles(2 * GIB, 3 * GIB, 4 * GIB), Quantiles(5, 10, 20), "cell")
TIMING = make_forecast(
    "k", DemandSeries(0.0, 5, (GIB,) * 9, (0,) * 9), [], "kernel", 100.0
).forecast


def at_first(*demands: CellDemand, held_bytes: float = 0.0) -> Situation:
    """Return a kernel that has run the first cell and goes on at once."""
    trail, moment = Trail(len(demands), (0,)), Moment((1.0, 1.0, 1.0), 1.0, 1)
    return Situation(trail, demands, moment, held_bytes=held_bytes)


def situation(*demands: CellDemand) -> Situation:
    return replace(
        at_first(*demands),
        trail=Trail(len(demands), (0, 1), ((0, 1), (1, 0)), frozenset({1}), True, 2),
        age_s=3.0,
        running=1,
        busy_s=4.0,
        queued=(1, 0),
        held_bytes=5.0,
    )


def served(forecast_for: Situation) -> tuple[float, ...]:
    found = with_content(TIMING, forecast_content(MODEL, known_peaks(forecast_for)))
    return tuple(h.memory_bytes.high for h in found.horizons)


def test_memory_rises_to_what_cells_took_and_not_to_what_is_guessed() -> None:
    usual = tuple(h.memory_bytes.high for h in TIMING.horizons)
    assert served(at_first(CPU, GUESSED)) == usual
    raised = served(at_first(CPU, KNOWN))
    assert raised[-1] == 4 * GIB
    assert all(r >= u for r, u in zip(raised, usual, strict=True))
    found = with_content(TIMING, forecast_content(MODEL, known_peaks(at_first(CPU, KNOWN))))
    assert any("memory raised" in note for note in found.notes)
    assert [n.model for n in found.needs] == [TIMING.need_model, "content"]
    assert forecast_from_record(json.loads(json.dumps(forecast_to_record(found)))) == found


def test_the_model_with_the_lower_brier_score_serves_once_there_are_outcomes() -> None:
    both = with_content(TIMING, forecast_content(MODEL, at_first(CPU, KNOWN)))
    by_content = both.needs[1].probabilities
    few = {"content": Score(0.9, MIN_OUTCOMES - 1), "timing": Score(0.1, MIN_OUTCOMES - 1)}
    young = choose_need(both, few)
    assert young.need_model == "content"
    assert any(f"{MIN_OUTCOMES - 1} of {MIN_OUTCOMES}" in note for note in young.notes)
    grown = {kind: replace(score, outcomes=MIN_OUTCOMES) for kind, score in few.items()}
    chosen = choose_need(both, grown)
    assert chosen.need_model == TIMING.need_model
    assert tuple(h.need_probability for h in chosen.horizons) == TIMING.needs[0].probabilities
    assert [(n.brier, n.outcomes) for n in chosen.needs] == [(0.1, 20), (0.9, 20)]
    assert [h.memory_bytes for h in chosen.horizons] == [h.memory_bytes for h in both.horizons]
    better = choose_need(both, {**grown, "content": Score(0.05, MIN_OUTCOMES)})
    assert tuple(h.need_probability for h in better.horizons) == by_content
    # Without the notebook there is nothing to choose.
    assert choose_need(TIMING, grown).need_model == TIMING.need_model


def test_the_timing_of_needs_comes_from_the_model_that_told_it_best() -> None:
    """Short use in each minute: the last value tells memory best and need worst."""
    need = tuple(int(i % 12 == 0) for i in range(240))
    series = DemandSeries(0.0, 5, tuple(GIB for _ in need), need)
    models = (Persistence(), Empirical())
    forecast = make_forecast("k", series, [], "kernel", 1200.0, models=models).forecast
    best = min(forecast.candidates, key=lambda b: b.brier)
    assert forecast.model == "persistence"
    assert forecast.need_model == best.model != "persistence"
    assert forecast.needs[0].probabilities == tuple(h.need_probability for h in forecast.horizons)


def test_what_was_said_is_scored_by_what_then_happened() -> None:
    scores = LiveScores()
    said = {"content": (0.0, 1.0), "timing": (0.5, 0.5)}
    scores.said(100.0, 99.0, (5, 60), said)
    scores.happened([], 159.0)
    assert scores.scores() == {}, "the longest horizon is not over"
    scores.happened([50.0, 130.0], 159.0)
    assert scores.scores() == {"content": Score(0.0, 1), "timing": Score(0.25, 1)}
    # Nothing happened: known once the longest horizon is over.
    scores.said(200.0, 199.0, (5, 60), said)
    scores.happened([50.0, 130.0], 260.0)
    assert scores.scores()["content"] == Score(0.25, 2)


def test_a_night_of_idle_time_counts_as_little_as_it_tells() -> None:
    scores = LiveScores()
    for age in range(0, 40_000, 10):
        scores.said(1000.0 + age, 1000.0, HORIZONS_S, {"content": (0.0,) * 5, "timing": (1.0,) * 5})
    scores.happened([], 1e9)
    assert scores.scores()["content"].outcomes == 8
    # A moment in which only one model spoke compares nothing.
    scores.said(1e9, 1e9, HORIZONS_S, {"timing": (1.0,) * 5})
    scores.happened([], 2e9)
    assert scores.scores()["timing"].outcomes == 8


def test_a_situation_travels_whole_and_a_long_notebook_is_short() -> None:
    here = situation(CPU, KNOWN)
    record = json.loads(json.dumps(situation_to_record(here)))
    assert situation_from_record(record) == replace(here, demands=list(here.demands))
    long = at_first(*[CPU] * 9_999, KNOWN)
    assert len(json.dumps(situation_to_record(long))) < 40_000
    for name, value in (("demands", [7]), ("kinds", [[1]]), ("earlier", [1]), ("size", None)):
        with pytest.raises(BadInputError):
            forecast_content(MODEL, situation_from_record({**record, name: value}))


@given(
    st.lists(st.floats(0, 1), min_size=len(EDGES_S), max_size=len(EDGES_S)),
    st.floats(0, 1e4),
    st.floats(0.01, 0.99),
)
def test_a_quantile_of_a_delay_is_where_its_chance_is(
    hazards: list[float], age_s: float, level: float
) -> None:
    delay = Delay(tuple(min(max(h, 0.01), 0.99) for h in hazards))
    if delay.survival(age_s) < 1e-9:
        return
    assert delay.within(delay.quantile(level, age_s), age_s) == pytest.approx(level, abs=1e-3)


def test_old_records_have_no_next_cell() -> None:
    record = forecast_to_record(TIMING)
    for name in ("need_model", "needs", "next_cells", "next_s", "burst_s"):
        del record[name]
    found = forecast_from_record(record)
    assert (found.next_cells, found.next_s, found.needs) == ((), None, ())
    named = forecast_to_record(replace(TIMING, next_cells=(NextCell(1, 0.5, "c", "x"),)))
    assert forecast_from_record(named).next_cells == (NextCell(1, 0.5, "c", "x"),)
    with pytest.raises(BadInputError, match="malformed"):
        forecast_from_record({**named, "next_cells": [{"where": 1}]})
