"""Variables that a save leaves out and every restore makes again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lone_kernel import Kernel

SETUP = """
import os, sys
import numpy as np, numpy.random
os.environ.update(KEPT="7", ODD="1")
sys.steady = 1.0
---
from types import SimpleNamespace
---
n = 600_000
"""
CELLS = """
big = np.arange(n) * 2.0
---
after = big + 1
---
kept = np.full(600_000, float(os.environ["KEPT"]))
---
late = np.full(n, sys.steady)
---
seeded = np.random.RandomState(3).rand(n)
---
drawn = np.random.rand(n)
---
odd = np.full(n, float(os.environ["ODD"]))
---
base = np.arange(n) + 3.0
---
part = base[::2]
---
boxed = [np.arange(n) + 4.0]
---
box = {"one": boxed[0]}
---
shown = np.arange(n) + 5.0; print("made")
---
slow = np.full(150_000, float(sum(range(200_000))))
---
held = SimpleNamespace(rows=(row for row in "ab"), values=[1, lambda: n])
---
other = SimpleNamespace(rows=(row for row in "ab"), value=sys.steady)
"""
HELPERS = """
from jupyter_gpu_predict.kernel.messages import RestoreRequest, SnapshotRequest
agent = get_ipython().kernel._gpu_predict_agent
config = agent.config
def save(name, **more):
    from jupyter_gpu_predict.kernel.state import save_state
    request = SnapshotRequest(name, config.snapshot_folder, config.key_path, **more)
    report = save_state(agent, request)
    return json.dumps(report)
def load(snapshot_id, **more):
    from jupyter_gpu_predict.kernel.state import load_state
    request = RestoreRequest(snapshot_id, config.snapshot_folder, config.key_path, **more)
    return json.dumps(load_state(agent, request))
import json
own = "agent config save load json RestoreRequest SnapshotRequest own speeds measured".split()
get_ipython().user_ns_hidden.update({n: globals()[n] for n in own if n in globals()})
"""
SPEED = """
speeds = agent.saves.omitter._at(config.snapshot_folder)
measured = speeds.bytes_per_s(1 << 20)
# A store so slow that only `slow`, which is small, is stored as fast as it is made.
speeds.bytes_per_s = lambda nbytes: 1e5 if nbytes > 2_000_000 else 1e9
get_ipython().user_ns_hidden.update(speeds=speeds, measured=measured)
"""
LEFT_OUT = ["after", "big", "kept", "late", "seeded"]


class Saved:
    """The saves of one session, and of one in a second process that goes on from it."""

    def __init__(self, folder: Path) -> None:
        self.kernel = kernel = Kernel(folder, recompute=True)
        self._cells(SETUP)
        kernel.run(HELPERS, silent=True)
        self.unmeasured = self._save("unmeasured")
        self._cells(CELLS)
        self.plain = self._save("plain")
        kernel.run(SPEED, silent=True)
        self.measured = float(kernel.run("print(measured)", silent=True))
        self.once = self._save("once")
        self.again_without_a_run = self._save("again")
        self._cells(CELLS)
        self.in_one_process = self._save("one process")
        last = self._save("seen")
        kernel.close()
        self.kernel = kernel = Kernel(folder, recompute=True)
        kernel.run(HELPERS, silent=True)
        kernel.run("print(load({!r}))".format(last["snapshot_id"]), silent=True)
        kernel.run(SPEED, silent=True)
        kernel.run("import os, sys; os.environ['ODD'] = '2'; sys.steady = 1.0", silent=True)
        self._cells(CELLS)
        self.twice = self._save("twice")
        self.moving = json.loads(kernel.run(
            "try: save('m', move=True)\nexcept Exception as error: print(json.dumps(str(error)))"
        ))  # fmt: skip
        kernel.run("n = 700_000")
        kernel.run("big = np.arange(n) * 2.0")
        self.changed = self._save("changed")

    def _cells(self, cells: str) -> None:
        for cell in cells.split("---\n"):
            self.kernel.run(cell.strip())

    def _save(self, name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.kernel.run(f"print(save({name!r}))", silent=True))
        return report


def left_out(report: dict[str, Any]) -> list[str]:
    return sorted(v["name"] for v in report["variables"] if "left out" in (v["reason"] or ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("session")


@pytest.fixture(scope="module")
def saved(folder: Path) -> Iterator[Saved]:
    made = Saved(folder)
    yield made
    made.kernel.close()


@pytest.fixture(scope="module")
def fresh(folder: Path, saved: Saved) -> Iterator[Kernel]:
    saved.kernel.manager.signal_kernel(9)
    kernel = Kernel(folder)
    kernel.run(HELPERS, silent=True)
    kernel.run("import sys; sys.steady = 2.0", silent=True)
    yield kernel
    kernel.close()


def test_only_what_two_processes_saw_stands_alone_and_is_cheap_is_left_out(saved: Saved) -> None:
    assert saved.measured > 0
    for report in (saved.unmeasured, saved.plain, saved.once, saved.again_without_a_run,
                   saved.in_one_process):  # fmt: skip
        assert left_out(report) == []
    assert left_out(saved.twice) == LEFT_OUT
    reports = {v["name"]: v for v in saved.twice["variables"]}
    assert {v["status"] for n, v in reports.items() if n in LEFT_OUT} == {"tombstone"}
    assert all(reports[name]["digest"] for name in LEFT_OUT)
    stored = ("drawn", "odd", "base", "part", "boxed", "box", "shown", "slow", "n")
    assert {reports[name]["status"] for name in stored} == {"saved"}


def test_what_is_made_from_another_input_is_stored(saved: Saved) -> None:
    # All but one are made with `n`, which is another now; to make that again was not seen twice.
    assert left_out(saved.changed) == ["kept"]


def test_what_moves_is_never_left_out(saved: Saved) -> None:
    # It cannot move because of its generators, and of nothing else.
    assert "held (types.SimpleNamespace)" in saved.moving
    assert "big" not in saved.moving


def test_a_restore_makes_again_what_was_left_out_and_nothing_else(
    saved: Saved, fresh: Kernel
) -> None:
    print_ = "print(load({!r}))".format(saved.twice["snapshot_id"])
    report = json.loads(fresh.run(print_, silent=True))
    outcomes = {v["name"]: (v["status"], v["reason"] or "") for v in report["variables"]}
    made = [name for name, (status, _) in outcomes.items() if status == "recomputed"]
    assert sorted(made) == sorted({*LEFT_OUT} - {"late"})
    right = """
        (big == np.arange(n) * 2.0).all(), (after == big + 1).all(), (kept == 7).all(),
        (seeded == np.random.RandomState(3).rand(n)).all(), (odd == 2).all(), base[2] == part[1],
    """
    assert fresh.run(f"print(all([{right}]))", silent=True).strip() == "True"
    # What its cell gives here is not what was left out, and its tombstone says so.
    assert outcomes["late"][0] == "tombstone"
    why = "its cells gave another value than the one that was there"
    assert why in outcomes["late"][1]
    assert why in fresh.run("print(repr(late))", silent=True)
    assert outcomes["held"][0] == outcomes["other"][0] == "tombstone"


def test_one_variable_that_was_left_out_comes_back_by_itself(saved: Saved, fresh: Kernel) -> None:
    fresh.run("%reset_selective -f ^(n|np|big|after)$", silent=True)
    load = "print(load({!r}, only=('after',)))".format(saved.twice["snapshot_id"])
    report = json.loads(fresh.run(load, silent=True))
    assert [(v["name"], v["status"]) for v in report["variables"]] == [("after", "recomputed")]
    look = "print(after[3], [name in globals() for name in ('n', 'np', 'big')])"
    assert fresh.run(look, silent=True).strip() == "7.0 [False, False, False]"


def test_what_could_not_be_saved_is_made_again_by_itself_too(saved: Saved, fresh: Kernel) -> None:
    load = "print(load({!r}, only=('held',), recompute=True))".format(saved.twice["snapshot_id"])
    report = json.loads(fresh.run(load, silent=True))
    # Nothing else was restored, and its own cell needs a class that was imported in another.
    assert [(v["name"], v["status"]) for v in report["variables"]] == [("held", "recomputed")]


def test_what_could_not_be_saved_is_compared_with_its_digest(saved: Saved, fresh: Kernel) -> None:
    reports = {v["name"]: v["digest"] for v in saved.twice["variables"]}
    assert "opaque:generator" in reports["held"]
    load = "print(load({!r}, recompute=True))".format(saved.twice["snapshot_id"])
    report = json.loads(fresh.run(load, silent=True))
    outcomes = {v["name"]: (v["status"], v["reason"] or "") for v in report["variables"]}
    assert outcomes["held"][0] == "recomputed"
    assert outcomes["other"][0] == "tombstone"
    assert "its cells gave another value" in outcomes["other"][1]
