from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.boosted import Boosted, mixture
from jupyter_gpu_predict.core.forecast.demand_model import demand_model, demand_record
from jupyter_gpu_predict.core.forecast.occupancy import FEATURES
from jupyter_gpu_predict.core.model import HORIZONS_S
from jupyter_gpu_predict.core.trace.series import DemandSeries
from jupyter_gpu_predict.errors import GpuPredictError, ModelFileError
from jupyter_gpu_predict.training.demand import UseSeries, examples, train_classifier

PERIOD = [1, 1, 0, 0, 0, 0, 0, 0]


def rhythm(length: int, shift: int = 0) -> list[int]:
    return [PERIOD[(i + shift) % len(PERIOD)] for i in range(length)]


def series_of(busy: list[int]) -> DemandSeries:
    return DemandSeries(1_700_000_000.0, 5, tuple(3e9 if b else 1e9 for b in busy), tuple(busy))


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    past = [
        UseSeries(f"o{i}", [float(b) for b in rhythm(400, i)], rhythm(400, i), 5.0)
        for i in range(12)
    ]
    data = examples(past, (1, 3, 6, 12, 60), seed=1)
    return demand_record(
        train_classifier(data.features, data.at, seed=1, rounds=100),
        train_classifier(data.features, data.within, seed=1, rounds=100),
    )


def test_it_learned_a_rhythm(record: dict[str, Any]) -> None:
    model = Boosted(demand_model(record, "demand 1"))
    # Two steps of use have just begun six idle steps ago: the next step is one of use.
    soon = model.forecast(series_of(rhythm(200)), HORIZONS_S)
    assert soon.horizons[0].need_probability > 0.8
    late = model.forecast(series_of(rhythm(195)), HORIZONS_S)
    assert late.horizons[0].need_probability < 0.1
    assert late.horizons[0].memory_bytes.high == 1e9
    assert soon.horizons[0].memory_bytes.mid == 3e9


def test_the_same_data_and_seed_give_the_same_model(record: dict[str, Any]) -> None:
    past = [
        UseSeries(f"o{i}", [float(b) for b in rhythm(400, i)], rhythm(400, i), 5.0)
        for i in range(12)
    ]
    data = examples(past, (1, 3, 6, 12, 60), seed=1)
    again = train_classifier(data.features, data.at, seed=1, rounds=100)
    assert again.model_to_string() == record["at"]


def test_a_young_kernel_is_left_to_others(record: dict[str, Any]) -> None:
    with pytest.raises(GpuPredictError, match="8 are needed"):
        Boosted(demand_model(record, "demand 1")).forecast(series_of([1, 0, 0]), HORIZONS_S)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "cells"}, "kind 'cells'"),
        ({"format": 99}, "format 99"),
        ({"features": [*FEATURES[:-1]]}, "other features"),
        ({"at": None}, "'at' is not what was written"),
        ({"digests": None}, "'at' is not what was written"),
    ],
)
def test_a_model_of_another_make_is_refused(
    record: dict[str, Any], change: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ModelFileError, match=fault):
        demand_model({**record, **change}, "demand 2")


def test_a_model_cut_short_is_refused_before_it_is_read(record: dict[str, Any]) -> None:
    # LightGBM would end the whole process over it.
    for share in (0.1, 0.5, 0.99):
        text = record["within"][: int(share * len(record["within"]))]
        with pytest.raises(ModelFileError, match="'within' is not what was written"):
            demand_model({**record, "within": text}, "demand 2")


def test_moments_beside_unknown_levels_teach_nothing() -> None:
    levels = [float(b) for b in rhythm(300)]
    levels[150] = math.nan
    data = examples([UseSeries("o", levels, rhythm(300), 5.0)], (1, 2), seed=1, moments=10_000)
    whole = examples(
        [UseSeries("o", [*levels[:150], 0.0, *levels[151:]], rhythm(300), 5.0)],
        (1, 2),
        seed=1,
        moments=10_000,
    )
    assert 0 < len(data) < len(whole)
    assert np.array_equal(data.within >= data.at, np.ones(len(data), bool))


@given(
    st.floats(0, 1),
    st.lists(st.floats(0, 1e9), min_size=1),
    st.lists(st.floats(1e9, 1e12), min_size=1),
)
def test_a_mixture_lies_between_its_parts(p: float, idle: list[float], busy: list[float]) -> None:
    assume(min(abs(p - 0.1), abs(p - 0.5), abs(p - 0.9)) > 1e-6)  # rounding decides there
    found = mixture(p, idle, busy)
    assert min(idle) <= found.low <= found.mid <= found.high <= max(busy)
    assert (found.high <= max(idle)) == (p <= 0.1) or max(idle) == min(busy)
    assert (found.low >= min(busy)) == (p > 0.9) or max(idle) == min(busy)
