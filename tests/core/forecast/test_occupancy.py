from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.occupancy import (
    FEATURES,
    MAX_PAST_STEPS,
    MIN_PAST_STEPS,
    occupancy_features,
)
from jupyter_gpu_predict.errors import BadInputError

AHEAD = (1, 3, 12)


def named(rows: np.ndarray, row: int) -> dict[str, float]:
    return dict(zip(FEATURES, rows[row], strict=True))


def test_a_regular_series_says_when_it_comes_back() -> None:
    busy = ([1] * 2 + [0] * 4) * 20
    rows = occupancy_features([float(b) for b in busy], busy, 5.0, AHEAD)
    one, three, _ = (named(rows, i) for i in range(3))
    assert one["busy"] == 0
    assert one["age"] == math.log1p(4)
    assert one["runs_like_median"] == math.log(4)
    assert one["runs_other_median"] == math.log(2)
    # Each run of four idle steps so far ended one step after it was as old as this one.
    assert one["ended"] > 0.95
    # Of the moments like now, after three or four idle steps, half came to use in the next one.
    assert 0.4 < one["busy_within"] < 0.6
    assert three["busy_within"] > 0.95


def test_what_is_not_known_of_the_past_is_not_made_up() -> None:
    rows = occupancy_features([0.0] * 20, [0] * 20, 5.0, (1,))
    found = named(rows, 0)
    assert math.isnan(found["runs_other_mean"])
    assert math.isnan(found["ended"])
    assert found["runs_like"] == 0


@pytest.mark.parametrize(("levels", "busy"), [(5, 5), (MIN_PAST_STEPS, MIN_PAST_STEPS + 1)])
def test_too_short_or_uneven_pasts_are_refused(levels: int, busy: int) -> None:
    with pytest.raises(BadInputError, match="features"):
        occupancy_features([0.0] * levels, [0] * busy, 5.0, (1,))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.floats(0, 1e12), st.just(math.nan)), st.integers(0, 1)),
        min_size=MIN_PAST_STEPS,
        max_size=MAX_PAST_STEPS + 40,
    ),
    st.floats(0.1, 1000),
)
def test_any_past_has_features_that_do_not_hang_on_the_unit(
    steps: list[tuple[float, int]], unit: float
) -> None:
    levels, busy = zip(*steps, strict=True)
    rows = occupancy_features(levels, busy, 5.0, AHEAD)
    assert rows.shape == (len(AHEAD), len(FEATURES))
    assert not np.isinf(rows).any()
    scaled = occupancy_features([unit * v for v in levels], busy, 5.0, AHEAD)
    assert np.allclose(rows, scaled, equal_nan=True)
    # Only so much of the past counts.
    longer = occupancy_features([7.0, *levels], [1, *busy], 5.0, AHEAD)
    if len(busy) >= MAX_PAST_STEPS:
        assert np.array_equal(rows, longer, equal_nan=True)
