from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.backtest import (
    MIN_BACKTEST_STEPS,
    backtest,
    choose_origins,
    pinball_loss,
    score,
)
from jupyter_gpu_predict.core.forecast.empirical import Empirical
from jupyter_gpu_predict.core.forecast.persistence import Persistence
from jupyter_gpu_predict.core.forecast.prior import (
    UNKNOWN_MEMORY,
    WIDENING,
    choose_prior,
    prior_forecast,
    widen,
)
from jupyter_gpu_predict.core.forecast.protocol import ModelForecast
from jupyter_gpu_predict.core.forecast.record import forecast_from_record, forecast_to_record
from jupyter_gpu_predict.core.forecast.selection import make_forecast, select
from jupyter_gpu_predict.core.model import (
    HORIZONS_S,
    Backtest,
    CellRun,
    HorizonForecast,
    Outcome,
    Quantiles,
)
from jupyter_gpu_predict.core.trace.series import DemandSeries
from jupyter_gpu_predict.errors import BadInputError, GpuPredictError

NOW = 1_700_000_000.0
EMPTY = DemandSeries(NOW, 5, (), ())
LIGHT = (Persistence(), Empirical())


def series_of(memory: Sequence[float]) -> DemandSeries:
    return DemandSeries(
        NOW - 5 * len(memory), 5, tuple(map(float, memory)), tuple(int(m > 0) for m in memory)
    )


def earlier(kernel: str, start: float, peaks: Sequence[int]) -> list[CellRun]:
    return [
        CellRun(
            kernel, "n.ipynb", "c", f"d{i}", start + 20 * i, start + 20 * i + 10, peak, peak,
            "torch", 0, 10.0, Outcome.OK,
        )
        for i, peak in enumerate(peaks)
    ]  # fmt: skip


class Oracle:
    """Knows the series: its quantiles are the truth."""

    name = "oracle"

    def __init__(self, truth: DemandSeries) -> None:
        self.truth = truth

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        at = len(series)
        said = []
        for horizon in horizons_s:
            window = self.truth.memory_bytes[at : at + horizon // 5] or (0.0,)
            needs = self.truth.need[at : at + horizon // 5] or (0,)
            said.append(HorizonForecast(horizon, Quantiles(*[max(window)] * 3), float(max(needs))))
        return ModelForecast(self.name, tuple(said))


class Failing:
    name = "failing"

    def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
        raise GpuPredictError("this model cannot be fitted")


def test_the_truth_scores_perfectly_and_others_do_not() -> None:
    series = series_of([1e9 * (1 + i // 7 % 5) for i in range(120)])
    origins = choose_origins(120)
    perfect, real = backtest(series, (Oracle(series), Empirical()), origins)
    assert (perfect.pinball, perfect.coverage, perfect.brier) == (0, 1, 0)
    assert perfect.origins == real.origins == len(origins)
    assert real.pinball > 0
    assert select((real, perfect)).model == "oracle"


def test_the_loss_is_in_units_of_the_series() -> None:
    memory = [1.0 + i % 7 for i in range(100)]
    small = backtest(series_of(memory), LIGHT, choose_origins(100))
    large = backtest(series_of([m * 1e9 for m in memory]), LIGHT, choose_origins(100))
    for a, b in zip(small, large, strict=True):
        assert a.pinball == pytest.approx(b.pinball)
        assert a.coverage == b.coverage


def test_pinball_loss_by_hand() -> None:
    assert pinball_loss(10, Quantiles(8, 10, 14)) == pytest.approx((0.1 * 2 + 0 + 0.1 * 4) / 3)
    assert pinball_loss(0, Quantiles(8, 8, 8)) == pytest.approx((0.9 + 0.5 + 0.1) * 8 / 3)


def test_a_model_that_cannot_be_fitted_is_named_and_the_others_scored() -> None:
    series = series_of([1, 2] * 30)
    scores = score(series, (Failing(), Empirical()), choose_origins(60))
    assert [b.model for b in scores.backtests] == ["empirical"]
    assert any("failing" in note and "cannot be fitted" in note for note in scores.notes)


def test_unknown_steps_are_not_scored() -> None:
    memory = [1.0, 2.0] * 30
    memory[40:45] = [math.nan] * 5
    for scored in backtest(series_of(memory), LIGHT, (20, 40)):
        assert math.isfinite(scored.pinball)
    assert backtest(DemandSeries(NOW, 5, (math.nan,) * 30, (0,) * 30), LIGHT, (10,)) == ()


@given(st.integers(0, 2000), st.integers(0, 9))
def test_origins_leave_something_on_both_sides(steps: int, count: int) -> None:
    origins = choose_origins(steps, count)
    assert len(origins) <= count
    assert bool(origins) == (steps >= MIN_BACKTEST_STEPS and count > 0)
    assert list(origins) == sorted(set(origins))
    assert all(8 <= origin <= steps - 3 for origin in origins)


@pytest.mark.parametrize("origin", [0, -1, 10, 11])
def test_an_origin_outside_the_series_is_refused(origin: int) -> None:
    with pytest.raises(BadInputError, match="origin"):
        backtest(series_of([1.0] * 10), LIGHT, (origin,))


def test_a_tie_goes_to_the_simpler_model() -> None:
    def scored(model: str, pinball: float) -> Backtest:
        return Backtest(model, pinball, 0.8, 0.1, 5)

    tied = (scored("prophet", 0.1), scored("empirical", 0.1), scored("persistence", 0.1))
    assert select(tied).model == "persistence"
    assert select((*tied, scored("prophet", 0.05))).model == "prophet"
    with pytest.raises(BadInputError):
        select(())


def test_the_winner_serves_with_its_score_and_all_candidates() -> None:
    series = series_of([1e9 * (1 + i // 7 % 5) for i in range(120)])
    made = make_forecast("k", series, [], "kernel", NOW, models=(*LIGHT, Oracle(series), Failing()))
    assert made.forecast.model == "oracle"
    assert made.forecast.basis == "kernel"
    assert made.forecast.backtest is not None
    assert made.forecast.backtest.pinball == 0
    assert {b.model for b in made.forecast.candidates} == {"persistence", "empirical", "oracle"}
    assert any("failing" in note for note in made.notes)


def test_a_winner_that_cannot_be_fitted_now_gives_way_and_it_is_said() -> None:
    class Late(Oracle):
        def forecast(self, series: DemandSeries, horizons_s: Sequence[int]) -> ModelForecast:
            if len(series) == len(self.truth):
                raise GpuPredictError("out of luck")
            return Oracle.forecast(self, series, horizons_s)

    series = series_of([1e9 * (1 + i // 7 % 5) for i in range(120)])
    made = make_forecast("k", series, [], "kernel", NOW, models=(Empirical(), Late(series)))
    assert made.forecast.model == "empirical"
    assert any("out of luck" in note for note in made.notes)
    alone = make_forecast("k", series, [], "kernel", NOW, models=(Failing(),))
    assert alone.forecast.model == "empirical"
    assert alone.forecast.backtest is None
    assert any("cannot be fitted" in note for note in alone.notes)


def test_models_are_scored_again_only_after_enough_new_steps() -> None:
    series = series_of([float(1 + i % 5) for i in range(100)])
    first = make_forecast("k", series, [], "kernel", NOW, models=LIGHT).evaluation
    for new, scored in ((5, False), (6, True), (-1, True)):
        later = DemandSeries(series.start_s + 5 * new, 5, series.memory_bytes, series.need)
        made = make_forecast("k", later, [], "kernel", NOW, models=LIGHT, last=first)
        assert (made.evaluation is not first) == scored


def test_a_young_kernel_is_served_by_its_own_quantiles_made_wide() -> None:
    made = make_forecast("k", series_of([2e9] * 5), [], "kernel", NOW)
    assert made.forecast.model == "empirical"
    assert made.forecast.backtest is None
    memory = made.forecast.memory_bytes(60)
    assert memory.high >= 2e9 * WIDENING
    assert memory.low <= 2e9 / WIDENING


def test_a_kernel_without_history_gets_that_of_its_notebook_and_wide_intervals() -> None:
    prior = [*earlier("a", 0, [10**9, 3 * 10**9]), *earlier("b", 9000, [10**9, 4 * 10**9])]
    made = make_forecast("k", EMPTY, prior, "notebook", NOW)
    assert (made.forecast.model, made.forecast.basis) == ("prior", "notebook")
    assert made.forecast.backtest is None
    memory = made.forecast.memory_bytes(300)
    assert 10**9 <= memory.mid <= 4 * 10**9
    assert memory.high >= 1.5 * memory.mid
    assert memory.low <= memory.mid / 1.5
    assert made.forecast.need_probability(300) > 0.7
    assert any("2 earlier sessions" in note for note in made.notes)


def test_an_idle_kernel_is_still_without_history_and_one_that_ran_is_not() -> None:
    prior = earlier("a", 0, [10**9])
    assert make_forecast("k", series_of([0] * 50), prior, "notebook", NOW).forecast.basis == (
        "notebook"
    )
    busy = series_of([0] * 25 + [1e9] * 25)
    own = make_forecast("k", busy, prior, "notebook", NOW, models=LIGHT)
    assert own.forecast.basis == "kernel"
    # The kernel's own runs, found again by notebook path, are no history of others.
    self_only = make_forecast("a", EMPTY, prior, "notebook", NOW)
    assert self_only.forecast.basis == "none"


def test_cells_seen_elsewhere_say_what_they_took() -> None:
    prior = earlier("a", 0, [0, 8 * 10**9])
    made = make_forecast("k", EMPTY, prior, "cells", NOW)
    assert made.forecast.basis == "cells"
    assert made.forecast.memory_bytes(60).high >= 8 * 10**9
    with_less = make_forecast("k", EMPTY, earlier("a", 0, [0, 0]), "cells", NOW)
    assert with_less.forecast.need_probability(60) < made.forecast.need_probability(60)


def test_nothing_known_says_so_and_is_widest() -> None:
    made = make_forecast("k", EMPTY, [], "none", NOW)
    assert made.forecast.basis == "none"
    assert made.forecast.memory_bytes(60) == UNKNOWN_MEMORY
    assert made.forecast.need_probability(300) < 0.5
    assert any("no history" in note for note in made.notes)


def test_what_the_kernel_holds_lies_inside_its_prior() -> None:
    held = DemandSeries(NOW, 5, (9e9,), (0,))
    memory = prior_forecast(held, earlier("a", 0, [10**9]), "notebook", (60,)).horizons[0]
    assert memory.memory_bytes.low <= 9e9 <= memory.memory_bytes.high


def test_the_notebooks_history_comes_before_that_of_its_cells() -> None:
    runs = earlier("a", 0, [1])
    assert choose_prior(runs, []) == (runs, "notebook")
    assert choose_prior([], runs) == (runs, "cells")
    assert choose_prior([], []) == ((), "none")


@given(st.lists(st.floats(0, 1e12), min_size=3, max_size=3))
def test_widening_never_narrows(values: list[float]) -> None:
    quantiles = Quantiles(*sorted(values))
    wide = widen(quantiles)
    assert 0 <= wide.low <= quantiles.low * (1 + 1e-9)
    assert wide.high >= quantiles.high * (1 - 1e-9)
    assert wide.mid == quantiles.mid


runs = st.builds(
    lambda kernel, start, length, peak: replace(
        earlier(kernel, NOW - start, [peak])[0], end_s=NOW - start + length
    ),
    st.sampled_from("abc"),
    st.floats(0, 1e6),
    st.floats(-10, 1e4),
    st.integers(0, 10**11),
)


@given(st.lists(runs, max_size=12), st.sampled_from(["kernel", "notebook", "cells", "none"]),
       st.lists(st.floats(0, 1e11), max_size=8))  # fmt: skip
def test_every_early_forecast_is_consistent_and_survives_json(prior, basis, own) -> None:
    made = make_forecast("k", series_of(own), prior, basis, NOW)
    need = 0.0
    for h in made.forecast.horizons:
        assert 0 <= h.memory_bytes.low <= h.memory_bytes.mid <= h.memory_bytes.high < math.inf
        assert need <= h.need_probability <= 1
        need = h.need_probability
    assert [h.horizon_s for h in made.forecast.horizons] == list(HORIZONS_S)
    line = json.dumps(forecast_to_record(made.forecast), allow_nan=False)
    assert forecast_from_record(json.loads(line)) == made.forecast


def test_malformed_input_is_refused() -> None:
    with pytest.raises(BadInputError, match="basis"):
        make_forecast("k", EMPTY, [], "guess", NOW)
    with pytest.raises(BadInputError, match="basis"):
        prior_forecast(EMPTY, [], "kernel", (5,))
    bad = replace(earlier("a", 0, [1])[0], peak_bytes=-1)
    with pytest.raises(BadInputError, match="peak_bytes"):
        make_forecast("k", EMPTY, [bad], "notebook", NOW)
    with pytest.raises(BadInputError, match="malformed"):
        forecast_from_record({"kernel_id": "k"})
