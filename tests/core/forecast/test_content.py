from __future__ import annotations

import json
import random
from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.content import (
    ContentModel,
    Situation,
    forecast_content,
)
from jupyter_gpu_predict.core.forecast.delay import EDGES_S, Delay, DelayModel, Moment
from jupyter_gpu_predict.core.forecast.delay import fit as fit_delays
from jupyter_gpu_predict.core.forecast.demand import (
    UNKNOWN_PEAK,
    CellDemand,
    cell_demands,
)
from jupyter_gpu_predict.core.model import CellRun, Outcome, Quantiles
from jupyter_gpu_predict.core.trace.digest import normalised_digest, source_digest
from jupyter_gpu_predict.core.trace.document import Trail, read_document
from jupyter_gpu_predict.errors import BadInputError, ModelFileError

PATH = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
RECORD = json.loads(PATH.read_text())
MODEL = ContentModel.from_record(RECORD)
QUICK = Moment((3.0, 2.0, 4.0), 1.0, 1)
CPU = CellDemand(0.0, run_s=Quantiles(0.0, 0.1, 0.2))
GPU = CellDemand(1.0, Quantiles(1e9, 2e9, 3e9), Quantiles(5.0, 10.0, 20.0))


def needs(situation: Situation) -> list[float]:
    return [h.need_probability for h in forecast_content(MODEL, situation).horizons]


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    size = draw(st.integers(1, 30))
    places = st.integers(0, size - 1)
    sizes = st.floats(0, 1e11)
    demand = st.builds(
        lambda gpu, a, b, c, s: CellDemand(
            gpu, Quantiles(*sorted((a, b, c))), Quantiles(s / 2, s, 2 * s)
        ),
        st.floats(0, 1), sizes, sizes, sizes, st.floats(0, 1e4),
    )  # fmt: skip
    return Situation(
        trail=Trail(size, tuple(draw(st.lists(places, max_size=10)))),
        demands=draw(st.lists(demand, min_size=size, max_size=size)),
        moment=Moment(
            tuple(draw(st.lists(st.floats(0, 1e6), max_size=6))),
            draw(st.floats(0, 1e6)),
            draw(st.none() | st.integers(-9, 9)),
        ),
        age_s=draw(st.floats(0, 1e7)),
        running=draw(st.none() | places),
        busy_s=draw(st.sampled_from([0.0, 7.0])),
        queued=tuple(draw(st.lists(places, max_size=4))),
        held_bytes=draw(sizes),
    )


@settings(deadline=None, max_examples=30)
@given(situations())
def test_forecasts_cannot_contradict_themselves(situation: Situation) -> None:
    found = forecast_content(MODEL, situation)
    chances = [h.need_probability for h in found.horizons]
    assert chances == sorted(chances)
    assert all(0 <= chance <= 1 for chance in chances)
    for h in found.horizons:
        memory = h.memory_bytes
        assert situation.held_bytes <= memory.low <= memory.mid <= memory.high
    if found.burst_s is not None:
        assert found.burst_s.low <= found.burst_s.mid <= found.burst_s.high
    assert forecast_content(MODEL, situation) == found


def test_a_queued_gpu_cell_is_certain_at_every_horizon() -> None:
    trail = Trail(3, (0,))
    for age_s in (0.0, 3600.0):
        queued = Situation(trail, (CPU, CPU, GPU), QUICK, age_s=age_s, queued=(1, 2))
        assert needs(queued) == pytest.approx([1] * 5)
    slow = replace(CPU, run_s=Quantiles(20.0, 20.0, 20.0))
    behind = Situation(trail, (CPU, slow, GPU), QUICK, queued=(1, 2))
    assert needs(behind) == pytest.approx([0, 0, 1, 1, 1])
    running = Situation(trail, (CPU, CPU, GPU), QUICK, busy_s=14.0, queued=(2,))
    assert needs(running) == pytest.approx([0, 1, 1, 1, 1])
    at_work = Situation(trail, (GPU, CPU, CPU), QUICK, running=0, busy_s=400.0)
    assert needs(at_work) == pytest.approx([1] * 5)
    found = forecast_content(MODEL, behind)
    assert found.burst_s == GPU.run_s
    assert found.next_cells[0].position == 1


def test_what_stands_next_decides_and_idleness_makes_it_unlikelier() -> None:
    trail = Trail(8, (0, 1, 2))
    cells = [CPU] * 8
    ahead = needs(Situation(trail, [*cells[:3], GPU, *cells[4:]], QUICK))
    away = needs(Situation(trail, [*cells[:7], GPU], QUICK))
    assert all(near > 3 * far for near, far in zip(ahead, away, strict=True))
    aged = [
        needs(Situation(trail, [*cells[:3], GPU, *cells[4:]], QUICK, age_s=age))[2]
        for age in (0.0, 60.0, 600.0)
    ]
    assert aged == sorted(aged, reverse=True)
    assert needs(Situation(trail, cells, QUICK)) == [0] * 5


def test_short_cells_before_the_gpu_cell_are_looked_through_and_long_ones_are_not() -> None:
    trail = Trail(6, (0, 1))
    long = replace(CPU, run_s=Quantiles(900.0, 900.0, 900.0))

    def third(between: CellDemand) -> list[float]:
        return needs(Situation(trail, (CPU, CPU, between, between, GPU, CPU), QUICK))

    short, slow = third(CPU), third(long)
    assert short[3] > 0.25
    assert short[3] > 3 * slow[3]
    assert needs(Situation(trail, (CPU, CPU, CPU, GPU, CPU, CPU), QUICK))[2] > short[2]


def test_memory_is_what_is_held_until_the_gpu_cell_is_likely() -> None:
    trail = Trail(2, (0,))
    queued = Situation(trail, (CPU, GPU), QUICK, queued=(1,), held_bytes=1.5e9)
    memory = forecast_content(MODEL, queued).horizons[0].memory_bytes
    assert (memory.low, memory.mid, memory.high) == (1.5e9, 2e9, 3e9)
    idle = Situation(trail, (CPU, CPU), QUICK, held_bytes=1.5e9)
    found = forecast_content(MODEL, idle)
    assert found.horizons[-1].memory_bytes == Quantiles(1.5e9, 1.5e9, 1.5e9)
    assert found.burst_s is None


def test_what_is_not_known_is_said() -> None:
    found = forecast_content(MODEL, Situation(Trail(0, unplaced=3), (), Moment()))
    assert found.next_cells == ()
    assert [h.need_probability for h in found.horizons] == [0] * 5
    assert any("no code cells" in note for note in found.notes)
    assert any("3 runs" in note for note in found.notes)


def test_bad_situations_and_models_are_refused() -> None:
    good = Situation(Trail(1), (CPU,), QUICK)
    for bad, match in (
        (replace(good, demands=()), "0 demands"),
        (replace(good, age_s=-1.0), "age_s"),
        (replace(good, held_bytes=float("nan")), "held_bytes"),
        (replace(good, moment=Moment((float("inf"),))), "not negative"),
        (replace(good, queued=(5,)), "position 5"),
        (replace(good, running=1), "running cell 1"),
    ):
        with pytest.raises(BadInputError, match=match):
            forecast_content(MODEL, bad)
    for record in ([], {}, {**RECORD, "version": 2}, {"version": 1}, {**RECORD, "delay": {"a": 1}}):
        with pytest.raises(ModelFileError, match="train anew"):
            ContentModel.from_record(record)
    assert ContentModel.from_record(MODEL.to_record()) == MODEL


@given(st.lists(st.floats(0.001, 0.999), min_size=11, max_size=11), st.floats(0, 1e5))
def test_a_delay_is_a_distribution(hazards: list[float], age_s: float) -> None:
    delay = Delay(tuple(hazards))
    times = [0.0, *EDGES_S[1:], 3e3, 1e4, 1e6]
    left = [delay.survival(t) for t in times]
    assert left == sorted(left, reverse=True)
    assert left[0] == 1
    soon = [delay.within(h, age_s) for h in (0, 5, 30, 300, 1e5)]
    assert soon == sorted(soon)
    assert all(0 <= p <= 1 for p in soon)


def test_the_fit_of_delays_finds_the_hazard_that_made_them() -> None:
    dice = random.Random(1)
    model = fit_delays(
        [(Moment(moved=1), dice.expovariate(1 / 30)) for _ in range(2000)], ridge=0.1
    )
    delay = model.forecast(Moment(moved=1))
    for seconds, share in ((5, 0.154), (30, 0.632), (100, 0.964)):
        assert delay.within(seconds) == pytest.approx(share, abs=0.06)
    assert DelayModel.from_record(model.weights) == model


def ran(source: str, peak_bytes: int, seconds: float) -> CellRun:
    digest = source_digest(source)
    return CellRun("k", None, None, digest, 0, seconds, peak_bytes, 0, "torch", 0, 0.0, Outcome.OK)


def test_a_cell_needs_what_it_took_or_cells_alike_or_what_its_source_says() -> None:
    known, changed, new = "fit(model, 1e-3)", "fit(model, 1e-4)", "model.cuda()"
    document = read_document([("a", known), ("b", changed), ("c", new), ("d", "x = 1")])
    runs = [ran(known, 4_000_000_000, 60)] * 8
    normalised = {source_digest(known): normalised_digest(known)}
    own, alike, source, none = cell_demands(document, runs, normalised)
    assert [d.basis for d in (own, alike, source, none)] == ["cell", "alike", "source", "source"]
    assert own.peak_bytes.mid == alike.peak_bytes.mid == 4e9
    assert own.gpu == alike.gpu > 0.8
    assert source.peak_bytes == UNKNOWN_PEAK
    assert source.gpu > 0.9 > 0.1 > none.gpu
    unused = cell_demands(document, [ran(new, 0, 1.0)] * 20, {})[2]
    assert unused.gpu < 0.1
    assert unused.run_s.mid == 1.0
