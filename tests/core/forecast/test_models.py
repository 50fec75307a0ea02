from __future__ import annotations

import itertools
import logging
import math
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.empirical import Empirical
from jupyter_gpu_predict.core.forecast.persistence import Persistence
from jupyter_gpu_predict.core.forecast.prophet_model import ProphetModel
from jupyter_gpu_predict.core.forecast.protocol import Forecaster, ModelForecast, Raw, settle
from jupyter_gpu_predict.core.forecast.windows import (
    last_known,
    steps_since_need,
    stretch,
    window_maxima,
    windows_with_need,
)
from jupyter_gpu_predict.core.model import HORIZONS_S
from jupyter_gpu_predict.core.trace.series import DemandSeries
from jupyter_gpu_predict.errors import BadInputError

# Prophet 1.5 calls pandas in a way that pandas 3.1 deprecates.
fits_prophet = pytest.mark.filterwarnings("ignore:The inplace keyword")

NOW = 1_700_000_000.0
LIGHT: list[Forecaster] = [Persistence(), Empirical()]


def series_of(memory: list[float], need: list[int] | None = None) -> DemandSeries:
    return DemandSeries(
        NOW, 5, tuple(map(float, memory)), tuple(need or [int(m > 0) for m in memory])
    )


@pytest.fixture(autouse=True)
def _quiet_stan() -> None:
    logging.getLogger("cmdstanpy").disabled = True


def check_consistent(said: ModelForecast) -> None:
    assert [h.horizon_s for h in said.horizons] == list(HORIZONS_S)
    low = mid = high = need = 0.0
    for h in said.horizons:
        q = h.memory_bytes
        assert 0 <= q.low <= q.mid <= q.high < math.inf
        assert q.low >= low
        assert q.mid >= mid
        assert q.high >= high
        assert need <= h.need_probability <= 1
        low, mid, high, need = q.low, q.mid, q.high, h.need_probability


steps = st.tuples(st.one_of(st.floats(0, 1e12), st.just(math.nan), st.just(0.0)), st.integers(0, 1))
any_series = st.lists(steps, min_size=1, max_size=90).map(
    lambda pairs: DemandSeries(NOW, 5, tuple(m for m, _ in pairs), tuple(n for _, n in pairs))
)


@pytest.mark.parametrize("model", LIGHT, ids=lambda m: m.name)
@given(series=any_series)
def test_a_forecast_never_contradicts_itself(model: Forecaster, series: DemandSeries) -> None:
    check_consistent(model.forecast(series, HORIZONS_S))


@pytest.mark.parametrize("model", LIGHT, ids=lambda m: m.name)
@given(series=any_series)
def test_forecasts_scale_with_the_unit_of_memory(model: Forecaster, series: DemandSeries) -> None:
    doubled = DemandSeries(NOW, 5, tuple(2 * m for m in series.memory_bytes), series.need)
    for one, two in zip(
        model.forecast(series, HORIZONS_S).horizons,
        model.forecast(doubled, HORIZONS_S).horizons,
        strict=True,
    ):
        assert two.memory_bytes.high == pytest.approx(2 * one.memory_bytes.high)
        assert two.need_probability == one.need_probability


figures = st.builds(
    Raw,
    st.integers(1, 500),
    st.floats(-1e12, 1e12),
    st.floats(-1e12, 1e12),
    st.floats(-1e12, 1e12),
    st.floats(-3, 3),
)


@given(st.lists(figures, max_size=8))
def test_any_figures_settle_into_order(raw: list[Raw]) -> None:
    said = settle("m", raw).horizons
    for before, after in itertools.pairwise(said):
        assert before.memory_bytes.high <= after.memory_bytes.high
        assert before.need_probability <= after.need_probability
    for h in said:
        assert 0 <= h.memory_bytes.low <= h.memory_bytes.mid <= h.memory_bytes.high
        assert 0 <= h.need_probability <= 1


@pytest.mark.parametrize("model", [*LIGHT, ProphetModel()], ids=lambda m: m.name)
def test_malformed_questions_are_refused(model: Forecaster) -> None:
    with pytest.raises(BadInputError, match="at least one step"):
        model.forecast(series_of([]), HORIZONS_S)
    for horizons in ((), (0,), (-5,), (True,), (2.5,)):
        with pytest.raises(BadInputError):
            model.forecast(series_of([1]), horizons)  # type: ignore[arg-type]


def test_persistence_expects_the_last_value() -> None:
    said = Persistence().forecast(series_of([4e9] * 40 + [6e9] * 40), (5,)).horizons[0]
    assert said.memory_bytes.mid == 6e9
    assert said.memory_bytes.low == 6e9


def test_empirical_forgets_all_but_the_latest_windows() -> None:
    said = Empirical().forecast(series_of([9e9] * 300 + [1e9] * 60), (5,)).horizons[0]
    assert said.memory_bytes.high == 1e9


def test_empirical_memory_is_the_peak_within_the_horizon() -> None:
    spikes = [8e9 if i % 10 == 0 else 1e9 for i in range(200)]
    said = Empirical().forecast(series_of(spikes), (5, 60)).horizons
    assert said[0].memory_bytes.mid == 1e9
    assert said[1].memory_bytes.low == 8e9


def test_the_chance_of_a_need_falls_with_the_time_since_the_last_one() -> None:
    chance = random.Random(7)
    need: list[int] = []
    while len(need) < 900:
        need += [1] * 3 + [0] * (2 if chance.random() < 0.7 else 50)
    busy = Empirical().forecast(series_of([1e9] * 900, need[:900]), (30,))
    idle_need = [*need[:895], *[0] * 40]
    idle = Empirical().forecast(series_of([1e9] * len(idle_need), idle_need), (30,))
    assert idle.horizons[0].need_probability < 0.5 < busy.horizons[0].need_probability


def test_a_handful_of_windows_makes_nobody_certain() -> None:
    always = Empirical().forecast(series_of([1] * 4, [1] * 4), HORIZONS_S)
    never = Empirical().forecast(series_of([1] * 4, [0] * 4), HORIZONS_S)
    assert always.horizons[-1].need_probability < 1
    assert never.horizons[0].need_probability > 0


@given(st.lists(st.one_of(st.floats(0, 9), st.just(math.nan)), max_size=30), st.integers(1, 8))
def test_window_maxima_agree_with_their_definition(values: list[float], steps: int) -> None:
    expected = []
    for i in range(len(values) - steps + 1):
        known = [v for v in values[i : i + steps] if not math.isnan(v)]
        expected.append(max(known) if known else None)
    assert window_maxima(values, steps) == expected


@given(st.lists(st.integers(0, 1), max_size=30), st.integers(1, 8))
def test_windows_with_a_need_agree_with_their_definition(need: list[int], steps: int) -> None:
    expected = [max(need[i : i + steps]) for i in range(len(need) - steps + 1)]
    assert windows_with_need(need, steps) == expected


def test_ages_and_last_values() -> None:
    assert list(steps_since_need([0, 1, 0, 0, 1])) == [None, None, 0, 1, 2, 0]
    assert last_known([math.nan, 3.0, math.nan]) == [None, None, 3.0, 3.0]
    assert stretch(0.5, 1, 2) == 0.75
    assert stretch(0.5, 4, 2) == 0.5


@fits_prophet
def test_prophet_fits_a_rising_memory_and_follows_it() -> None:
    chance = random.Random(1)
    rising = [1e9 + 2e7 * i + chance.gauss(0, 1e7) for i in range(100)]
    need = [int(i % 4 == 0) for i in range(100)]
    said = ProphetModel().forecast(series_of(rising, need), HORIZONS_S)
    check_consistent(said)
    assert said.note == ""
    minute = said.horizons[3].memory_bytes
    assert minute.mid == pytest.approx(1e9 + 2e7 * 111, rel=0.05)
    assert minute.low < minute.mid < minute.high
    assert said.horizons[0].need_probability < 0.6 < said.horizons[3].need_probability


def test_prophet_says_where_it_did_not_fit() -> None:
    idle = ProphetModel().forecast(series_of([0.0] * 50), HORIZONS_S)
    check_consistent(idle)
    assert "memory is constant" in idle.note
    assert "need is constant" in idle.note
    assert idle.horizons[-1].memory_bytes.high == 0
    few = ProphetModel().forecast(series_of([1, math.nan, 3, 2]), HORIZONS_S)
    check_consistent(few)
    assert "3 known steps, 8 needed" in few.note


@fits_prophet
@settings(max_examples=6, deadline=None)
@given(series=any_series)
def test_prophet_never_contradicts_itself(series: DemandSeries) -> None:
    check_consistent(ProphetModel().forecast(series, HORIZONS_S))


def test_the_light_models_import_nothing_heavy() -> None:
    code = (
        "import sys; import jupyter_gpu_predict.core.forecast.selection,"
        "jupyter_gpu_predict.control.forecasting;"
        "print(sorted({'numpy', 'pandas', 'prophet', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
