from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.conformal import MIN_OUTCOMES, Conformal
from jupyter_gpu_predict.core.model import Quantiles


def share_held(spread: float, drift: float, outcomes: int = 4000) -> float:
    """Return how often adjusted intervals of +-`spread` hold draws of a unit normal that drifts."""
    chance = random.Random(5)
    conformal = Conformal()
    held = 0
    for i in range(outcomes):
        centre = 100 + drift * i
        said = Quantiles(100 - spread, 100, 100 + spread)
        actual = centre + chance.gauss(0, 1)
        adjusted = conformal.adjust(said)
        held += adjusted.low <= actual <= adjusted.high
        conformal.observe(actual, said)
    return held / outcomes


def test_intervals_too_narrow_too_wide_and_adrift_come_to_hold_what_they_say() -> None:
    for spread, drift in ((0.1, 0.0), (30.0, 0.0), (1.0, 0.001)):
        assert 0.77 < share_held(spread, drift) < 0.83, (spread, drift)


def test_nothing_changes_before_there_is_evidence() -> None:
    conformal = Conformal()
    said = Quantiles(1.0, 2.0, 3.0)
    for _ in range(MIN_OUTCOMES):
        assert conformal.adjust(said) == said
        conformal.observe(50.0, said)
    assert conformal.adjust(said).high > 3.0


@given(st.lists(st.tuples(st.floats(0, 1e12), st.floats(0, 1e12), st.floats(0, 1e12))))
def test_adjusted_quantiles_stay_in_order(outcomes: list[tuple[float, float, float]]) -> None:
    conformal = Conformal(math.log1p, lambda x: math.expm1(min(x, 700.0)))
    for a, b, actual in outcomes:
        said = Quantiles(min(a, b), (a + b) / 2, max(a, b))
        conformal.observe(actual, said)
        found = conformal.adjust(said)
        assert 0 <= found.low <= found.mid <= found.high
