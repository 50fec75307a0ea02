"""Which names a cell bound and removed, among the many that IPython keeps beside them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jupyter_gpu_predict.kernel import observer
from jupyter_gpu_predict.kernel.cell_runs import CellRuns


@pytest.fixture
def session(monkeypatch):
    """Run cells as IPython enters them into the namespace; return what each bound and removed."""
    monkeypatch.setattr(observer, "install", lambda shell: None)
    shell = SimpleNamespace(user_ns={"In": [], "Out": {}, "_ih": []}, user_ns_hidden={"In": []})
    runs = CellRuns(shell)

    def run(code):
        number = len(shell.user_ns["In"])
        shell.user_ns["In"].append(code)
        shell.user_ns[f"_i{number}"] = shell.user_ns["_i"] = code
        runs.begin(code, None)
        exec(code, shell.user_ns)
        shell.user_ns[f"_{number}"] = shell.user_ns["_"] = object()
        runs.end("ok")
        return set(runs.runs[-1]["bound"]), runs.runs[-1]["removed"]

    run.namespace, run.runs = shell.user_ns, runs
    return run


def test_only_the_users_names_count(session):
    assert session("a = 1; b = 2") == ({"a", "b"}, [])
    assert session("1 + 1") == (set(), [])
    assert session("c = 3; a = [1]") == ({"a", "c"}, [])
    assert session("del a; d = 4; a = 5") == ({"a", "d"}, [])
    assert session("del b") == (set(), ["b"])
    assert session("c += 1; e = 1") == ({"c", "e"}, [])


def test_names_that_ipython_drops_are_not_the_users(session):
    for _ in range(5):
        session("1 + 1")
    for name in ("_1", "_i2", "_3"):
        del session.namespace[name]
    assert session("z = 1") == ({"z"}, [])
    assert [r["outcome"] for r in session.runs.runs] == ["ok"] * 6


def test_what_changes_between_cells_is_of_unknown_origin(session):
    session("a = 1; b = 1")
    session.namespace["a"] = 2
    session.namespace["thread"] = 1
    del session.namespace["b"]
    session.namespace[7] = "no name"
    assert session("c = 1") == ({"c"}, [])
    outside = session.runs.runs[-2]
    assert outside["outcome"] == "outside"
    assert (set(outside["bound"]), outside["removed"]) == ({"a", "thread"}, ["b"])
