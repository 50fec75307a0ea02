"""Whatever is made again is what it was, in sessions made up at random."""

from __future__ import annotations

import contextlib
import copy
import re
import types
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recompute_sessions import Session

from jupyter_gpu_predict.kernel import cell_runs, recompute

START = "from types import SimpleNamespace as S\na, b, c = [1], [2], 3"
NAMES = ("a", "b", "c", "f", "g")
CONTAINERS = NAMES[:3]
name = st.sampled_from(CONTAINERS)
number = st.integers(0, 3)

CELLS = st.one_of(
    st.builds("{} = [{}, {}]".format, name, number, number),
    st.builds("{} = {}".format, name, number),
    st.builds("{} = {}".format, name, name),
    st.builds("{} = [{}, {}]".format, name, name, number),
    st.builds("{}.append({})".format, name, number),
    st.builds("{}[0] = {}".format, name, name),
    st.builds("{} += [{}]".format, name, number),
    st.builds("{} = list({})".format, name, name),
    st.builds("g = (str(x) for x in {})".format, name),
    st.builds("g = (str(x) + str({}) for x in {})".format, name, name),
    st.builds("g = iter({})".format, name),
    st.builds("{} = next(g)".format, name),
    st.builds("{} = [*g][:2]".format, name),
    st.builds("def f(x, y={}):\n    return (x, {}, y)".format, name, name),
    st.builds("def f(x):\n    {}.append(1)\n    return x".format, name),
    st.builds("def f(x):\n    x.append({})\n    return {}".format, name, name),
    st.builds("def f(x):\n    global {0}\n    {0} = [x, {1}]".format, name, number),
    st.builds("def f(x):\n    yield x\n    yield {}".format, name),
    st.builds("{} = f({})".format, name, name),
    st.builds("g = f({})".format, name),
    st.builds("f({})".format, name),
    st.builds("for x in {}:\n    {}.append(0)\n    break".format, name, name),
    st.builds("if {}:\n    {} = {}".format, name, name, name),
    st.builds("del {}".format, name),
    st.builds("{} = sorted({}, key=str) if {} else 0".format, name, name, name),
    st.builds("g = (lambda: (yield from {}))()".format, name),
    st.builds("{0}, {1} = {1}, {0}".format, name, name),
    st.builds("{} = S(v={}, w={})".format, name, name, number),
    st.builds("if hasattr({0}, 'v'):\n    {0}.v = {1}".format, name, name),
    st.builds(
        "if hasattr({0}, 'v') and hasattr({0}.v, 'append'):\n    {0}.v.append({1})".format,
        name,
        number,
    ),
    st.builds("{0} = getattr({1}, 'v', {1})".format, name, name),
    st.builds("{} = {{'k': {}}}".format, name, name),
    st.builds("g = map(f, [{}, {}])".format, name, number),
    st.builds("f = lambda q: [q, {}]".format, name),
    st.builds("import random\n{} = random.random()".format, name),
)


def drained(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return what the variables are, with what comes out of the generators."""
    found: dict[str, Any] = {}
    for key in NAMES:
        value = namespace.get(key)
        if isinstance(value, types.FunctionType):
            continue
        if hasattr(value, "__next__"):
            try:
                found[key] = [plain(item) for item, _ in zip(value, range(9), strict=False)]
            except Exception as error:
                found[key] = repr(error)
        else:
            found[key] = plain(value)
    return found


def plain(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def savable(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except TypeError:
        return False
    return True


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    cells=st.lists(CELLS, min_size=2, max_size=9),
    lost=st.sampled_from(CONTAINERS),
    marks=st.booleans(),
)
def test_what_is_made_again_is_what_it_was(cells: list[str], lost: str, marks: bool) -> None:
    with contextlib.ExitStack() as stack:
        if not marks:  # as for values that are too large
            for module in (cell_runs, recompute):
                stack.enter_context(mock.patch.object(module, "fingerprint", return_value=""))
        check(Session().run(START, *cells), lost)


def check(session: Session, lost: str) -> None:
    """Make again what cannot be copied, and `lost`, and compare."""
    gone = [n for n in session.names() if not savable(session.namespace[n])]
    if lost in session.namespace and lost not in gone:
        gone.append(lost)
    fresh = session.make_again(*gone)
    made = [n for n in gone if fresh[n].status == "recomputed"]
    assert fresh.untouched(*made)
    # A cell that did not fail then does not fail now.
    assert {fresh[n].status for n in gone} <= {"recomputed", "not offered"}, fresh.outcomes
    event = {n: type(session.namespace[n]).__name__ for n in made}
    if not made:
        return
    before, after = drained(session.namespace), drained(fresh.namespace)
    for n in made:
        # A generator may look up a variable that stays lost.
        if n in before and "TombstoneError" not in str(after[n]):
            assert after[n] == before[n], (n, event, fresh.outcomes)


@pytest.mark.parametrize("marks", [True, False])
def test_an_object_in_the_place_of_one_that_is_gone_is_another(marks: bool) -> None:
    cells = ("def f(x):\n    global b\n    b = [x, 0]", "g = map(f, [a, 0])", "a = [*g][:2]")
    with contextlib.ExitStack() as stack:
        if not marks:
            stack.enter_context(mock.patch.object(cell_runs, "fingerprint", return_value=""))
        session = Session().run(START, *cells)
        again = Session().run("b = [*range(9)]", "del b\nb = [*range(7, 16)]")
    fresh = session.make_again("b")
    assert fresh["b"].status == "not offered" or fresh.namespace["b"] == [0, 0]
    assert again.make_again("b").namespace["b"] == [*range(7, 16)]


def test_what_a_name_stood_for_before_may_be_in_what_it_stands_for_now() -> None:
    cells = ("g = (str(x) for x in b)", "b = S(v=b, w=0)", "b.v.append(0)")
    session = Session().run(START, *cells)
    fresh = session.make_again("g")
    assert fresh["g"].status == "recomputed"
    assert list(fresh.namespace["g"]) == list(session.namespace["g"]) == ["2", "0"]


@pytest.mark.parametrize("lost", ["g"])
def test_the_sessions_above_do_get_recomputed(lost: str) -> None:
    cells = ("a = [1, 2]", "b = list(a)", "g = (str(x) for x in b)", "c = next(g)")
    fresh = Session().run(*cells).make_again(lost)
    assert fresh[lost].status == "recomputed"
    assert list(fresh.namespace[lost]) == ["2"]
