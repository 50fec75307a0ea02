"""What is run again, with what, and when that pays."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recompute_sessions import Session

from jupyter_gpu_predict.kernel import cell_runs
from jupyter_gpu_predict.kernel.marks import fingerprint
from jupyter_gpu_predict.snapshots.recompute.graph import History
from jupyter_gpu_predict.snapshots.recompute.planner import Plan, better_recomputed, plan
from jupyter_gpu_predict.snapshots.recompute.runs import OUTSIDE, read_runs

UNKNOWN = "it depends on {}, and no recorded cell run made that as it was then"
BIG = "list(range(1000))"
CLASS = "class M:\n    def __init__(self, d):\n        self.d = d\n"


def planned(session: Session, name: str, *lost: str) -> Plan | str:
    history = History(read_runs(session.cells.records()))
    there = [n for n in session.names() if n not in (name, *lost)]
    return plan(history, name, {n: fingerprint(session.namespace[n]) for n in there})


def sources(session: Session, name: str, *lost: str) -> list[str]:
    found = planned(session, name, *lost)
    assert isinstance(found, Plan), found
    runs = read_runs(session.cells.records())
    return [runs[rerun.index].source for rerun in found.reruns]


@pytest.mark.parametrize(
    ("cells", "again"),
    [
        # What is restored is not computed again, however long the way to it was.
        ([f"d = {BIG}", "e = [x + 1 for x in d]", "w = iter(e)"], [2]),
        ([f"d = {BIG}", CLASS, "w = M(d)"], [2]),
        ([f"d = {BIG}", CLASS, "w = M(d)", "w.d = None"], [0, 2, 3]),
        # What was read is another object now.
        ([f"d = {BIG}", "w = iter(d)", f"d = {BIG}"], [0, 1]),
        # What was read is changed since, under its own name or another.
        ([f"d = {BIG}", "w = iter(d)", "d.append(1)"], [0, 1, 2]),
        ([f"d = {BIG}", "e = d", "w = iter(d)", "e.append(1)"], [0, 1, 2, 3]),
        ([f"d = {BIG}", "w = iter(d)", "def f(q):\n    q.append(1)", "f(d)"], [0, 1, 3]),
        ([f"d = {BIG}", "w = iter(d)", "def f(q):\n    return len(q)", "f(d)"], [1]),
        # Functions of libraries that are known to read only.
        ([f"d = {BIG}", "import math", "w = iter(d)", "s = math.fsum(d); t = sorted(d)"], [2]),
        # Atoms are fed by value, whatever they are bound to now.
        (["n = 1", "w = iter([n])", "n = 2", "n = 1"], [1]),
        (["n = 1", "w = iter([n])", "n = 2"], [0, 1]),
        # Only the last of several bindings counts.
        (["w = iter([1])", "w = iter([2])"], [1]),
        # A function's globals are read when it is called.
        (["k = 1", "def f():\n    return k", "w = iter([f()])", "k = 2"], [0, 2]),
    ],
)
def test_the_least_that_must_run_again(cells: list[str], again: list[int]) -> None:
    session = Session().run(*cells)
    assert sources(session, "w") == [cells[i] for i in again]


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["import time", "w = time.time()"], r"time.time\(\)"),
        (["import math", "math.own = 1; w = 1"], "changes the module math"),
        (["d = eval('[1]')", "w = iter(d)", "d.append(2)"], "uses eval"),
        (["w = 1", "1 / 0"], None),
        (["w = []", "w.append(1); 1 / 0"], "did not end well"),
    ],
)
def test_what_cannot_run_again(cells: list[str], why: str | None) -> None:
    found = planned(Session().run(*cells), "w")
    if why is None:
        assert isinstance(found, Plan)
    else:
        assert isinstance(found, str)
        assert re.search(why, found), found


def test_a_lost_variable_is_made_along_the_way() -> None:
    session = Session().run("a = iter([1])", "b = [a]")
    assert sources(session, "b", "a") == ["a = iter([1])", "b = [a]"]
    assert sources(session, "b") == ["b = [a]"]


def test_what_older_runs_made_is_of_unknown_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_runs, "MAX_RUNS", 4)
    session = Session().run("a = [1]", "b = a", "w = iter(a)", "x = 1", "y = 2", "z = 3")
    records = session.cells.records()
    assert [r["source"] for r in records] == ["", "x = 1", "y = 2", "z = 3"]
    assert records[0]["outcome"] == OUTSIDE
    assert set(records[0]["bound"]) == {"a", "b", "w"}
    assert planned(session, "w") == UNKNOWN.format("a, b, w")
    # What they share is not known either: a change of one may be a change of all.
    session.run("b.append(2)", "v = iter(a)")
    assert isinstance(planned(session, "v"), Plan)
    assert isinstance(planned(session, "v", "a"), str)


def test_sources_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_runs, "MAX_SOURCE_BYTES", 1000)
    session = Session()
    for i in range(50):
        session.run(f"x{i} = '{'y' * 90}'")
    records = session.cells.records()
    assert sum(len(r["source"]) for r in records) <= 1000
    assert len(records[0]["bound"]) + len(records) - 1 == 50


def test_what_changes_between_cells_is_no_cells_doing() -> None:
    session = Session().run("a = [1]")
    session.namespace["a"] = [2]
    session.namespace["b"] = [3]
    session.run("w = iter(a)")
    assert planned(session, "b") == UNKNOWN.format("a, b")
    assert sources(session, "w") == ["w = iter(a)"]


def test_records_of_another_kind_are_refused() -> None:
    [run] = read_runs(Session().run("a = 1").cells.records())
    assert read_runs([{**run.to_dict(), "from a later version": 1}]) == [run]
    for bad in ({}, {"number": 1}, {**replace(run).to_dict(), "inputs": [1]}):
        with pytest.raises(ValueError, match="no record of a cell run"):
            read_runs([bad])


DIGESTS = st.lists(st.sampled_from(["a1", "a1", "b2", "", "c3+opaque:thread"]), max_size=4)


@given(
    st.integers(-1, 10**12),
    st.floats(-1, 1e10, allow_nan=False),
    st.floats(-1, 1e6, allow_nan=False),
    DIGESTS,
)
def test_recomputed_is_only_what_is_certain_and_ten_times_cheaper(
    nbytes: int, bytes_per_s: float, seconds: float, digests: list[str]
) -> None:
    if better_recomputed(nbytes, bytes_per_s, seconds, digests):
        assert len(digests) >= 2
        assert set(digests) in ({"a1"}, {"b2"})
        assert 0 <= seconds * 10 <= nbytes / bytes_per_s


def test_it_is_recomputed_where_that_pays() -> None:
    facts: dict[str, Any] = {"nbytes": 10**9, "bytes_per_s": 1e9, "digests": ["a", "a"]}
    assert better_recomputed(recompute_s=0.1, **facts)
    assert not better_recomputed(recompute_s=0.11, **facts)


def test_a_session_that_adopts_records_knows_the_rest_is_of_unknown_origin() -> None:
    saved = Session().run("a = [1]", f"d = {BIG}", "w = iter(d)")
    fresh = Session()
    fresh.namespace.update(a=[1], d=list(range(1000)), w=iter([]), other=1)
    fresh.cells.adopt(saved.cells.records(), ["a", "d", "w", "other"])
    fresh.run("v = iter(d)", "u = [other]")
    assert sources(fresh, "w") == ["w = iter(d)"]
    assert sources(fresh, "v") == ["v = iter(d)"]
    assert sources(fresh, "u") == ["u = [other]"]
    assert planned(fresh, "u", "other") == UNKNOWN.format("other")
    fresh.cells.adopt([{"not": "a record"}], ["a"])
    assert planned(fresh.run("x = 1"), "a") == UNKNOWN.format("a, d, other")
