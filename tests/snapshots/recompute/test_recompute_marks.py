"""Fingerprints and kinds of values."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.kernel.marks import fingerprint, kind_of

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.sets(st.integers(), max_size=4)
    ),
    max_leaves=12,
)


def strict(value: Any) -> Any:
    """Return a key that is equal for values that no cell could tell apart."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(strict, value))
    if isinstance(value, dict):
        return dict, tuple((strict(k), strict(v)) for k, v in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(strict, value))
    return type(value), repr(value)


@settings(deadline=None, max_examples=200)
@given(plain, plain)
def test_marks_are_equal_for_equal_values_only(a: Any, b: Any) -> None:
    assert fingerprint(a) != ""
    assert (fingerprint(a) == fingerprint(b)) == (strict(a) == strict(b))


def test_marks_are_the_same_in_another_process() -> None:
    value = "[{'a', 'b', 'cc'}, {1: 2.5}, (b'x', range(3)), ..., None, bytearray(b'q')]"
    code = f"from jupyter_gpu_predict.kernel.marks import fingerprint\nprint(fingerprint({value}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint(eval(value))


class Own(list[Any]):
    def __iter__(self) -> Any:
        raise AssertionError("code of the user's ran")

    __len__ = __reduce__ = __hash__ = __eq__ = __iter__  # type: ignore[assignment]


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [[0] * 10_000, "x" * 100_000, 1 << 10**6, CYCLE, Own(), [Own()], SimpleNamespace(),
     np.zeros(10**5), np.array([None]), iter([])],
    ids=range(10),
)  # fmt: skip
def test_what_is_large_or_foreign_has_no_mark(value: Any) -> None:
    assert fingerprint(value) == ""


def test_arrays_are_told_apart_by_type_shape_and_contents() -> None:
    values = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, "f4"), np.ones(4), np.float32(0), 0.0]
    assert len({fingerprint(v) for v in values}) == len(values)
    assert fingerprint(np.zeros(4)) == fingerprint(np.zeros(4))


def closure() -> Any:
    state: list[int] = []
    return lambda: state


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, "atom"),
        ((1, "a"), "atom"),
        (([],), "data"),
        ([1], "data"),
        (np.zeros(2), "data"),
        (np.float64(1), "atom"),
        (np, "module:numpy"),
        (np.mean, "code:numpy.mean"),
        (np.add, "code:numpy.add"),
        (len, "code:builtins.len"),
        (dict, "code:builtins.dict"),
        (closure, f"code:{__name__}.closure"),
        (closure(), "other"),
        ([].append, "other"),
        (iter([]), "other"),
        (threading.Lock(), "other"),
        (Own(), "other"),
    ],
)
def test_kinds(value: Any, kind: str) -> None:
    assert kind_of(value) == kind
