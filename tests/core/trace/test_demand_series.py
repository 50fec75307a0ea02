from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import STEP_S, CellRun, DemandSample, Outcome
from jupyter_gpu_predict.core.trace.rows import (
    run_from_row,
    run_to_row,
    sample_from_row,
    sample_to_row,
)
from jupyter_gpu_predict.core.trace.series import DemandSeries, demand_series
from jupyter_gpu_predict.errors import BadInputError

NOW = 1_700_000_000.0


def run(start: float, end: float, peak: int, left: int = 0, **changes: object) -> CellRun:
    made = CellRun("k", "n.ipynb", "c", "d", start, end, peak, left, "torch", 0, 0.0, Outcome.OK)
    return replace(made, **changes)  # type: ignore[arg-type]


def sample(t: float, used: int, suspended: int = 0, busy: bool = False) -> DemandSample:
    return DemandSample("k", t, used, suspended, busy)


times = st.floats(0, 400).map(lambda t: NOW - 300 + t)
sizes = st.integers(0, 10**12)
samples_lists = st.lists(st.builds(sample, times, sizes, sizes, st.booleans()), max_size=30)
runs_lists = st.lists(
    st.builds(run, times, times, sizes, sizes, outcome=st.sampled_from(Outcome)), max_size=15
)


def test_nothing_known_gives_an_empty_series_that_ends_now() -> None:
    series = demand_series([], [], now_s=NOW)
    assert len(series) == 0
    assert series.end_s == NOW


def test_a_runs_peak_counts_during_it_and_what_it_left_afterwards() -> None:
    series = demand_series([], [run(NOW - 22, NOW - 13, 900, 300)], now_s=NOW)
    assert series.memory_bytes == (900, 900, 900, 300, 300)
    assert series.need == (1, 1, 1, 0, 0)


def test_levels_are_carried_over_gaps_and_suspended_memory_is_still_wanted() -> None:
    series = demand_series(
        [sample(NOW - 21, 100), sample(NOW - 9, 0, 100), sample(NOW - 2, 0, 0)], [], now_s=NOW
    )
    assert series.memory_bytes == (100, 100, 100, 100, 100)
    assert demand_series([sample(NOW - 20, 7), sample(NOW - 5, 0)], [], now_s=NOW).memory_bytes == (
        7,
        7,
        7,
        0,
    )


def test_a_run_without_device_memory_is_no_need() -> None:
    series = demand_series([], [run(NOW - 20, NOW - 1, 0)], now_s=NOW)
    assert set(series.need) == {0}


def test_a_refused_run_says_nothing_of_memory() -> None:
    held = sample(NOW - 20, 500)
    refused = run(NOW - 12, NOW - 11, 800, 0, outcome=Outcome.REFUSED)
    assert demand_series([held], [refused], now_s=NOW) == demand_series([held], [], now_s=NOW)


def test_an_unmeasured_run_does_not_erase_what_samples_saw() -> None:
    series = demand_series(
        [sample(NOW - 20, 500)], [run(NOW - 12, NOW - 11, 0, 0, peak_source="none")], now_s=NOW
    )
    assert series.memory_bytes[-1] == 500


def test_a_cell_that_still_runs_is_a_need() -> None:
    done = run(NOW - 30, NOW - 25, 400, 400)
    series = demand_series([sample(NOW - 8, 400, busy=True)], [done], now_s=NOW)
    assert series.need == (1, 0, 0, 0, 1, 1)
    # The same sample inside a finished run adds nothing.
    inside = demand_series([sample(NOW - 27, 400, busy=True)], [done], now_s=NOW)
    assert inside.need == (1, 0, 0, 0, 0, 0)


def test_a_clock_set_back_during_a_run_leaves_a_moment_at_its_start() -> None:
    series = demand_series([], [run(NOW - 12, NOW - 3600, 50, 20)], now_s=NOW)
    assert series.need == (1, 0, 0)
    assert series.memory_bytes == (50, 20, 20)


def test_records_of_the_future_are_left_out_and_a_slightly_fast_clock_is_not() -> None:
    assert len(demand_series([sample(NOW + 3600, 9)], [], now_s=NOW)) == 0
    assert demand_series([sample(NOW + 1, 9)], [], now_s=NOW).memory_bytes == (9,)


def test_old_steps_are_left_out_but_their_level_goes_on() -> None:
    series = demand_series([sample(NOW - 1e6, 77)], [], now_s=NOW, max_steps=10)
    assert series.memory_bytes == (77,) * 10


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1, 10**400, "8", None, True])
def test_a_malformed_number_is_named(bad: object) -> None:
    with pytest.raises(BadInputError, match="used_bytes"):
        demand_series([sample(NOW, bad)], [], now_s=NOW)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="peak_bytes"):
        demand_series([], [run(NOW, NOW, bad)], now_s=NOW)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="now_s"):
        demand_series([], [], now_s=bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("memory", "need"),
    [((1.0,), ()), ((-1.0,), (0,)), ((math.inf,), (0,)), ((1.0,), (2,))],
)
def test_a_malformed_series_is_refused(memory: tuple[float, ...], need: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError):
        DemandSeries(NOW, 5, memory, need)


@given(samples_lists, runs_lists, st.randoms(use_true_random=False))
def test_order_does_not_matter(samples, runs, random) -> None:
    # Two records of one moment have no order but that of arrival.
    samples = list({s.t_s: s for s in samples}.values())
    runs = list({max(r.start_s, r.end_s): r for r in runs}.values())
    series = demand_series(samples, runs, now_s=NOW)
    random.shuffle(samples)
    random.shuffle(runs)
    assert demand_series(samples, runs, now_s=NOW) == series


@given(samples_lists, runs_lists)
def test_the_series_agrees_with_its_definition(samples, runs) -> None:
    series = demand_series(samples, runs, now_s=NOW)
    assert series.end_s == NOW
    assert len(series.memory_bytes) == len(series.need) <= 1000
    past = [r for r in runs if r.outcome is not Outcome.REFUSED and r.start_s <= NOW + STEP_S]
    known = [s for s in samples if s.t_s <= NOW + STEP_S]
    assert bool(past or known) == bool(len(series))
    for i, (memory, need) in enumerate(zip(series.memory_bytes, series.need, strict=True)):
        begin, end = series.start_s + i * STEP_S, series.start_s + (i + 1) * STEP_S
        last = i == len(series) - 1
        inside = [
            r
            for r in past
            if (r.start_s < end and r.end_s > begin)
            or begin <= r.start_s < end
            or (last and r.start_s >= end)
        ]
        assert memory >= max((r.peak_bytes for r in inside), default=0)
        seen = [s.used_bytes + s.suspended_bytes for s in known if begin <= s.t_s < end]
        assert memory >= max(seen, default=0)
        if any(r.peak_bytes > 0 for r in inside):
            assert need == 1
        elif not any(s.busy for s in known):
            assert need == 0


@given(samples_lists, runs_lists)
def test_records_survive_the_way_to_the_worker(samples, runs) -> None:
    back = [sample_from_row("k", sample_to_row(s)) for s in samples]
    assert back == samples
    again = [run_from_row(run_to_row(r)) for r in runs]
    assert demand_series(back, again, now_s=NOW) == demand_series(samples, runs, now_s=NOW)


def test_malformed_rows_are_refused() -> None:
    with pytest.raises(BadInputError, match="four"):
        sample_from_row("k", [1.0, 2])
    with pytest.raises(BadInputError, match="drop"):
        run_from_row([*run_to_row(run(NOW, NOW, 1))[:-1], "exploded"])
