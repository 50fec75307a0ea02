"""Variables that cannot be saved, made again in a fresh kernel by running their cells."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lone_kernel import Kernel

CELLS = """
import threading, random, os, sys, subprocess, socket
from types import SimpleNamespace
---
k = 10
---
gen = (n * k for n in range(4))
---
first = next(gen)
---
k = 1000
---
lock = threading.Lock()
---
other = threading.Lock()
---
log = open("log.txt", "a"); log.write("line"); log.flush()
---
same = open("same.txt")
---
stale = open("stale.txt")
---
data = list(range(100_000))
---
class Model:
    def __init__(self, data):
        self.data = data
        self.lock = threading.Lock()
---
model = Model(data)
---
total = sum(data)
---
work = list(range(100_000))
---
rows = iter(work)
---
work.append("new")
---
noisy = SimpleNamespace(lock=threading.Lock(), values=[random.random() for _ in range(3)])
---
later = random.random()
---
said = threading.Lock(); print("made")
---
shown = threading.Lock(); shown
---
ran = SimpleNamespace(lock=threading.Lock(), code=subprocess.run(["true"]).returncode)
---
net = socket.socket(); net.bind(("127.0.0.1", 0))
---
thread = threading.Thread(target=threading.Event().wait, daemon=True); thread.start()
---
%time timed = threading.Lock()
---
sys.modules["__main__"].sneaked = threading.Lock()
---
if "AGAIN" in os.environ:
    raise KeyError("not twice")
flaky = threading.Lock()
---
if "AGAIN" in os.environ:
    open("sly.txt", "w").close()
sly = threading.Lock()
---
needs_log = SimpleNamespace(log=log, lock=threading.Lock())
---
def reader(lines=("a", "b")):
    for line in lines:
        yield line + str(k)
---
lines = reader()
"""
WORDS = """
gen lock other log same stale model rows noisy said shown ran net thread timed sneaked flaky sly
needs_log lines outside
"""
LOST = WORDS.split()
SAVE = """
def save(lost):
    import pickle
    from jupyter_gpu_predict.kernel.recompute import records_for_snapshot
    shell = get_ipython()
    kept = {}
    for name, value in shell.user_ns.items():
        if shell.user_ns_hidden.get(name, shell) is value or name.startswith("_"):
            continue
        if name not in {*lost, "save", "In", "Out", "Model", "reader"}:
            kept[name] = ("module", value.__name__) if type(value) is type(pickle) else value
    with open("saved.pickle", "wb") as file:
        agent = shell.kernel._gpu_predict_agent
        pickle.dump((records_for_snapshot(agent), kept, noisy.values), file)
"""
RESTORE = """
def load(lost):
    import importlib, json, pickle
    from jupyter_gpu_predict.kernel.recompute import adopt_records, recompute
    from jupyter_gpu_predict.snapshots.report import RestoredVariable, RestoreReport
    from jupyter_gpu_predict.snapshots.tombstone import Tombstone
    os.environ["AGAIN"] = "1"
    with open("saved.pickle", "rb") as file:
        records, kept, values = pickle.load(file)
    ns = get_ipython().user_ns
    for name, value in kept.items():
        if isinstance(value, tuple) and value[:1] == ("module",):
            value = importlib.import_module(value[1])
        ns[name] = value
    for name in lost:
        ns[name] = Tombstone(name, "thing", "it cannot be saved")
    variables = [RestoredVariable(n, "thing", "restored", None, None) for n in [*kept, *DEFINED]]
    variables += [RestoredVariable(n, "thing", "tombstone", None, None) for n in lost]
    report = RestoreReport("id", "name", tuple(variables), {}, (), 0, 0.0)
    before, state = dict(ns), random.getstate()
    agent = get_ipython().kernel._gpu_predict_agent
    done = recompute(agent, report, records, digests={"other": "of another value"})
    made = {o.name for o in done if o.status == "recomputed"}
    facts = {
        "untouched": all(ns[n] is v for n, v in before.items() if n not in made),
        "no more": sorted(set(ns) - set(before)),
        "tombstones": sorted(n for n in lost if type(ns[n]) is Tombstone),
        "random": random.getstate() == state,
    }
    looks = {
        "noisy": lambda: noisy.values == values,
        "gen": lambda: list(gen),
        "model": lambda: model.data is data and type(model) is Model,
        "rows": lambda: [*rows][-1],
        "same": lambda: same.read(),
        "lines": lambda: list(lines),
    }
    facts.update({name: look() for name, look in looks.items() if name in made})
    facts["work"] = work[-1]
    adopt_records(agent, report, records, done)
    return json.dumps([[(o.name, o.status, o.reason) for o in done], facts])
"""
DEFINED = """
class Model:
    def __init__(self, data):
        self.data = data
        self.lock = threading.Lock()
def reader(lines=("a", "b")):
    for line in lines:
        yield line + str(k)
DEFINED = ("Model", "reader")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    (folder / "same.txt").write_text("same")
    (folder / "stale.txt").write_text("old")
    return folder


@pytest.fixture(scope="module")
def saved(folder: Path) -> Iterator[list[dict[str, Any]]]:
    kernel = Kernel(folder)
    try:
        for cell in CELLS.split("---\n"):
            kernel.run(cell.strip())
        kernel.run("outside = iter([1])", silent=True)
        kernel.run(SAVE)
        kernel.run(f"save({LOST!r})")
    finally:
        kernel.close()
    with (folder / "saved.pickle").open("rb") as file:
        yield pickle.load(file)[0]


@pytest.fixture(scope="module")
def restored(folder: Path, saved: list[dict[str, Any]]) -> dict[str, Any]:
    (folder / "stale.txt").write_text("changed since")
    kernel = Kernel(folder)
    try:
        kernel.run("import threading, random, os")
        kernel.run(DEFINED)
        kernel.run(RESTORE)
        output = kernel.run(f"print(load({LOST!r}))")
        outcomes, facts = json.loads(output.splitlines()[-1])
        facts["shown"] = output.splitlines()[:-1]
        kernel.run("after = 1")
        look = "[(r['source'], sorted(r['bound'])) for r in a.recorder.cell_runs.records()][-6:]"
        facts["records"] = kernel.run(f"a = get_ipython().kernel._gpu_predict_agent; print({look})")
    finally:
        kernel.close()
    return {"outcomes": {n: (status, reason) for n, status, reason in outcomes}, **facts}


@pytest.mark.parametrize("name", ["gen", "lock", "same", "model", "noisy", "lines"])
def test_what_had_no_side_effects_is_made_again(restored: dict[str, Any], name: str) -> None:
    assert restored["outcomes"][name] == ("recomputed", None)


def test_it_is_what_it_was(restored: dict[str, Any]) -> None:
    assert restored["gen"] == [1000, 2000, 3000]  # a generator follows the namespace
    assert restored["model"]  # over the restored data, which is not computed again
    assert restored["noisy"]  # with the random numbers of then
    assert restored["same"] == "same"
    assert restored["lines"] == ["a1000", "b1000"]


def test_what_was_changed_in_place_later_is_computed_beside_the_restored_one(
    restored: dict[str, Any],
) -> None:
    status, reason = restored["outcomes"]["rows"]
    assert (status, reason) == ("recomputed", "it has its own copy of what it shared with work")
    assert restored["rows"] == restored["work"] == "new"


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("log", "not offered", r"needs the cell 'log = open.* again, but it wrote the file '.*log"),
        ("needs_log", "not offered", r"needs the cell 'log = open"),
        ("stale", "not offered", r"the file '.*stale.txt' which it read has changed since"),
        ("said", "not offered", "but it printed"),
        ("shown", "not offered", "but it displayed a result"),
        ("ran", "not offered", "but it started a process"),
        ("net", "not offered", "but it used the network"),
        ("thread", "not offered", "but it started a thread that still runs"),
        ("timed", "not offered", "magic"),
        ("sneaked", "not offered", "it changed sneaked, which its source does not show"),
        ("outside", "not offered", "depends on outside, and no recorded cell run made that"),
        ("flaky", "failed", "failed when it ran again: KeyError: 'not twice'"),
        ("sly", "failed", "wrote the file 'sly.txt'; it did not do so before"),
        ("other", "mismatch", "another value"),
    ],
)
def test_the_rest_stays_a_tombstone(
    restored: dict[str, Any], name: str, status: str, reason: str
) -> None:
    found, why = restored["outcomes"][name]
    assert found == status
    assert re.search(reason, why), why
    assert name in restored["tombstones"]


def test_nothing_else_is_changed_or_shown(restored: dict[str, Any], folder: Path) -> None:
    assert restored["untouched"]
    assert restored["no more"] == []
    assert restored["random"]
    assert restored["shown"] == []
    assert not (folder / "sly.txt").exists()
    assert (folder / "log.txt").read_text() == "line"


def test_the_session_goes_on_from_the_records(restored: dict[str, Any]) -> None:
    assert "('lines = reader()', ['lines'])" in restored["records"]
    assert "('after = 1', ['after'])" in restored["records"]


def test_a_record_is_plain_and_small(saved: list[dict[str, Any]]) -> None:
    assert len(pickle.dumps(saved)) < 100_000
    runs = {r["source"]: r for r in saved}
    assert list(runs["later = random.random()"]["random"]) == ["random"]
    assert runs["k = 10"]["random"] == {}
    assert runs["k = 10"]["effects"] == []
    assert [Path(i[0]).name for i in runs['same = open("same.txt")']["inputs"]] == ["same.txt"]
