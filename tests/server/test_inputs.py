"""Checks of what comes in: whatever it is, it is right or it is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.model import PolicySettings
from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.server import inputs

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**5000), max_value=10**5000)
    | st.floats()
    | st.text(max_size=300)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(sorted(PolicySettings.__dataclass_fields__))


def checked(check: Any, *arguments: Any) -> Any:
    """Return what a check returns, or ``None`` if it refuses in a few plain words."""
    try:
        return check(*arguments)
    except BadInputError as error:
        said = str(error)
    assert 0 < len(said) < 400
    return None


@given(JSON)
def test_a_size_is_a_whole_positive_number_that_a_database_can_hold(value: Any) -> None:
    size = checked(inputs.size_bytes, value)
    right = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (isinstance(value, int) or value.is_integer())
        and 1 <= value <= 2**62
    )
    assert (size is not None) == right
    if size is not None:
        assert type(size) is int
        assert size == value


@given(JSON)
def test_seconds_are_finite_and_not_negative(value: Any) -> None:
    seconds = checked(inputs.seconds, value, "deadline_s")
    if seconds is not None:
        assert 0 <= seconds <= 7 * 86400
        assert seconds == value
    else:
        assert isinstance(value, bool) or not (
            isinstance(value, int | float) and 0 <= value <= 7 * 86400
        )


@given(JSON)
def test_a_share_lies_between_0_and_1(value: Any) -> None:
    share = checked(inputs.share, value, "max_duty")
    if share is not None:
        assert 0 <= share <= 1
        assert not isinstance(value, bool)


@given(JSON)
def test_only_true_and_false_are_boolean(value: Any) -> None:
    assert (checked(inputs.boolean, value, "wait") is not None) == (value is True or value is False)


@given(JSON | st.sampled_from(["low", "normal", "high"]))
def test_a_priority_is_one_of_three(value: Any) -> None:
    priority = checked(inputs.priority, value)
    if priority is not None:
        assert priority in (-1, 0, 1)
        assert value == priority or inputs.PRIORITIES[value] == priority


@given(JSON | st.text(alphabet="a.b/\\\0é😀\ud800\n", max_size=200))
def test_a_text_can_stand_in_a_path_and_in_a_message(value: Any) -> None:
    text = checked(inputs.text, value, "name")
    if text is not None:
        assert text == value
        assert 1 <= len(text) <= 128
        assert PurePosixPath("folder", text).parent == PurePosixPath("folder") or text == "."
        assert ".." not in text
        assert text.isprintable()
        text.encode()


@pytest.mark.parametrize("value", ["a", "my model 3", "SIM-GPU-0", "é", "x" * 128])
def test_plain_names_pass(value: str) -> None:
    assert inputs.text(value, "name") == value


@given(st.dictionaries(FIELDS | st.text(max_size=20), JSON, max_size=4))
def test_a_change_of_the_policy_is_refused_or_leaves_sound_settings(body: dict[str, Any]) -> None:
    changes = checked(inputs.policy, body)
    if changes is None:
        return
    assert set(changes) == set(body)
    settings = replace(PolicySettings(), **changes)
    assert isinstance(settings.prebind, bool)
    assert 0 <= settings.prebind_threshold <= 1
    assert 0 <= settings.max_duty <= 1
    assert type(settings.headroom_bytes) is int
    assert settings.headroom_bytes >= 0
    for name in ("grace_period_s", "reservation_s", "prebind_horizon_s", "snapshot_interval_s"):
        assert math.isfinite(getattr(settings, name))
        assert getattr(settings, name) >= 0


@given(st.sets(st.text(max_size=300)), st.sets(st.sampled_from(["bytes", "priority"])))
def test_unknown_fields_are_refused_by_name(names: set[str], allowed: set[str]) -> None:
    unknown = names - allowed
    body = dict.fromkeys(names | allowed)
    if not unknown:
        inputs.known_fields(body, allowed)
        return
    with pytest.raises(BadInputError, match="unknown field") as refused:
        inputs.known_fields(body, allowed)
    assert repr(min(unknown))[:50] in str(refused.value)


def test_a_health_script_names_known_values_only() -> None:
    assert inputs.health({"xid": 79, "lost": True}) == {"xid": 79, "lost": True}
    for body in ({}, {"uuid": "SIM-GPU-1"}, {"self": 1}):
        with pytest.raises(BadInputError):
            inputs.health(body)
