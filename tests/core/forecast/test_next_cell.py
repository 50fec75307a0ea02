from __future__ import annotations

import json
import random
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.forecast.content import ContentModel
from jupyter_gpu_predict.core.forecast.logit import fit_choices, shares, utility
from jupyter_gpu_predict.core.forecast.next_cell import (
    FEATURES,
    NEAR,
    PRIOR,
    NextCellModel,
    candidates,
    fit,
)
from jupyter_gpu_predict.core.trace.document import Trail
from jupyter_gpu_predict.errors import BadInputError, ModelFileError

PATH = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
SHIPPED = ContentModel.from_record(json.loads(PATH.read_text())).cells


def chance(model: NextCellModel, trail: Trail, position: int) -> float:
    return {c.position: c.probability for c in model.forecast(trail)}.get(position, 0.0)


@st.composite
def trails(draw: st.DrawFn) -> Trail:
    size = draw(st.integers(1, 400))
    places = st.integers(0, size - 1)
    return Trail(
        size=size,
        positions=tuple(draw(st.lists(places, max_size=30))),
        earlier=tuple(draw(st.lists(st.tuples(places, places), max_size=10))),
        edited=frozenset(draw(st.sets(places, max_size=5))),
        failed=draw(st.booleans()),
    )


@given(trails())
def test_chances_are_a_distribution_over_cells_of_the_document(trail: Trail) -> None:
    found = SHIPPED.forecast(trail)
    assert sum(c.probability for c in found) == pytest.approx(1)
    assert len({c.position for c in found}) == len(found)
    assert all(0 <= c.position < trail.size and c.probability >= 0 for c in found)
    assert [c.probability for c in found] == sorted((c.probability for c in found), reverse=True)


@given(trails(), st.data())
def test_a_queued_request_is_certain(trail: Trail, data: st.DataObject) -> None:
    queued = data.draw(st.lists(st.integers(0, trail.size - 1), min_size=1))
    (only,) = SHIPPED.forecast(trail, queued)
    assert (only.position, only.probability) == (queued[0], 1.0)


def test_one_goes_down_the_notebook_and_after_a_repair_on_with_what_is_new() -> None:
    down = Trail(10, (0, 1, 2, 3, 4))
    assert SHIPPED.forecast(down)[0].position == 5
    assert SHIPPED.forecast(Trail(10))[0].position == 0
    repaired = Trail(10, (0, 1, 2, 3, 4, 1))
    assert chance(SHIPPED, repaired, 5) > 5 * chance(SHIPPED, down, 7)


def test_what_this_notebook_did_before_rules_where_it_is_known() -> None:
    once = Trail(10, (3,))
    loops = Trail(10, (3,), earlier=((3, 0),) * 30)
    assert SHIPPED.forecast(loops)[0].position == 0
    assert chance(SHIPPED, once, 0) < 0.1
    repeats = Trail(10, (3,) * 30)
    assert SHIPPED.forecast(repeats)[0].position == 3


def test_an_edit_or_an_error_makes_a_cell_likelier() -> None:
    plain = Trail(10, (0, 1, 2, 3))
    edited = Trail(10, (0, 1, 2, 3), edited=frozenset({1}))
    failed = Trail(10, (0, 1, 2, 3), failed=True)
    assert chance(SHIPPED, edited, 1) > 3 * chance(SHIPPED, plain, 1)
    assert chance(SHIPPED, failed, 3) > 2 * chance(SHIPPED, plain, 3)


def test_a_notebook_of_ten_thousand_cells_has_few_candidates() -> None:
    trail = Trail(10_000, (0, 9_000, 5_000), earlier=((5_000, 77),), edited=frozenset(range(9_999)))
    found = candidates(trail)
    assert len(found) < 6 * NEAR
    assert {0, 77, 5_000, 5_001, 9_000, 9_001} <= {*found}


def test_the_fit_finds_the_habits_that_made_the_moves() -> None:
    habits = NextCellModel({**dict.fromkeys(FEATURES, 0.0), "next": 2.0, "distance back": -1.0})
    dice = random.Random(3)
    examples = []
    for _ in range(1000):
        size = dice.randrange(3, 12)
        # In a trail of one cell there are no counts to be mixed in.
        trail = Trail(size, (dice.randrange(size),))
        said = habits.forecast(trail)
        cells, chances = [c.position for c in said], [c.probability for c in said]
        examples.append((trail, dice.choices(cells, chances)[0]))
    found = fit(examples)
    assert {name: found.weights[name] for name in PRIOR} == pytest.approx(PRIOR)
    trail = Trail(9, (4,))
    for place in range(9):
        assert chance(found, trail, place) == pytest.approx(chance(habits, trail, place), abs=0.05)


def test_a_fit_of_choices_agrees_with_the_closed_form() -> None:
    # Of two alternatives the first was chosen 80 times in 100: its weight is ln 4.
    choices = [(({"a": 1.0}, {}), 0)] * 80 + [(({"a": 1.0}, {}), 1)] * 20
    found = fit_choices(choices, ("a",), 1e-6, {})
    assert found["a"] == pytest.approx(1.3863, abs=1e-3)
    assert shares([utility(found, f) for f in choices[0][0]])[0] == pytest.approx(0.8, abs=1e-4)
    separable = [(({"a": 1.0}, {}), 0)] * 50
    assert 0 < fit_choices(separable, ("a",), 0.5, {})["a"] < 10


def test_models_of_other_features_and_positions_outside_are_refused() -> None:
    good = dict(SHIPPED.weights)
    for bad in (
        {**good, "moon": 1.0},
        {name: good[name] for name in FEATURES[1:]},
        {**good, "next": "much"},
        {**good, "next": float("nan")},
    ):
        with pytest.raises(ModelFileError, match="train anew"):
            NextCellModel.from_record(bad)
    with pytest.raises(BadInputError, match="document of 2"):
        SHIPPED.forecast(Trail(2, (2,)))
    with pytest.raises(BadInputError, match="document of 2"):
        SHIPPED.forecast(Trail(2), (-1,))
    with pytest.raises(BadInputError, match="not one choice"):
        fit([])
    assert SHIPPED.forecast(Trail(0)) == ()
