"""Large variables are pickled once, and what they share is shared all the same."""

from __future__ import annotations

import json
import sys

import pytest

_LARGE = """
class Record:
    def __init__(self, i): self.i, self.name, self.tags = i, f"record-{i}", [i]
records = [Record(i) for i in range(8000)]
"""


def _groups(folder, report):
    manifest = folder.read(report.snapshot_id)["manifest"]
    return [{k[1] for k in g["keys"] if k[0] == "var"} for g in manifest["groups"]]


def _together(folder, report, *names):
    return any(group >= set(names) for group in _groups(folder, report))


@pytest.mark.parametrize(
    ("code", "names", "check"),
    [
        ("index = {r.name: r for r in records}", ("index",), "index['record-5'] is records[5]"),
        ("tags = records[7].tags", ("tags",), "tags is records[7].tags"),
        ("one = records[3]", ("one",), "one is records[3]"),
        ("box = {'all': records}", ("box",), "box['all'] is records"),
        (
            "words = [str(i) for i in range(9000)]; records[1].words = words",
            ("words",),
            "words is records[1].words",
        ),
        (
            "nested = [[i] for i in range(30000)]; other = {'n': nested}",
            ("nested", "other"),
            "other['n'] is nested",
        ),
        (
            "nested = [[i] for i in range(30000)]; pair = (nested[20000], 1)",
            ("nested", "pair"),
            "pair[0] is nested[20000]",
        ),
        ("L = [[i] for i in range(60000)]; deep = L[300]", ("L", "deep"), "deep is L[300]"),
        ("import collections\nq = collections.deque([records[4]])", ("q",), "q[0] is records[4]"),
        ("def f(): return f.kept\nf.kept = records[2]", ("f",), "f() is records[2]"),
    ],
)
def test_what_large_variables_share_stays_shared(folder, save, load, code, names, check):
    _, report = save(_LARGE + code)
    assert all(v.status == "saved" for v in report.variables)
    partner = names if {"nested", "L"} & set(names) else (*names, "records")
    assert _together(folder, report, *partner)
    namespace, restored = load(report.snapshot_id)
    assert eval(check, namespace)
    assert {v.status for v in restored.variables} == {"restored"}


def test_large_variables_that_share_nothing_are_apart(folder, save, load):
    code = (
        _LARGE
        + """
others = [Record(i) for i in range(8000)]
words = [str(i) for i in range(60000)]
table = {str(i): i for i in range(60000)}
nested = [[i] for i in range(30000)]
"""
    )
    _, report = save(code)
    groups = [g for g in _groups(folder, report) if g]
    for name in ("records", "others", "words", "table", "nested"):
        assert {name} in groups
    namespace, _ = load(report.snapshot_id)
    assert type(namespace["others"][1]) is type(namespace["records"][1]) is namespace["Record"]


def test_a_large_variable_that_cannot_be_saved_spoils_no_other(save, load):
    code = (
        _LARGE
        + """
index = {r.name: r for r in records}
bad = [records[0], *[Record(i) for i in range(8000)], (i for i in ())]
small = [records[1]]
"""
    )
    _, report = save(code)
    status = {v.name: v.status for v in report.variables}
    assert status == {"Record": "saved", "records": "saved", "index": "saved",
                      "bad": "tombstone", "small": "saved"}  # fmt: skip
    reason = next(v for v in report.variables if v.name == "bad")
    assert "generator" in reason.reason
    assert reason.path == "[8001]"
    namespace, _ = load(report.snapshot_id)
    assert namespace["small"][0] is namespace["records"][1] is namespace["index"]["record-1"]


def test_only_what_met_the_fault_is_lost_when_loading(save, load, tmp_path, monkeypatch):
    module = tmp_path / "going.py"
    module.write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    _, report = save(
        "import going\nshared = [1]\ngood = {'s': shared}\nbad = [shared, going.Thing()]\n"
        "via = [bad]\nlater = (shared, 2)"
    )
    monkeypatch.delitem(sys.modules, "going")
    module.unlink()
    namespace, restored = load(report.snapshot_id)
    status = {v.name: v.status for v in restored.variables}
    assert status == {"going": "tombstone", "shared": "restored", "good": "restored",
                      "bad": "tombstone", "via": "tombstone", "later": "restored"}  # fmt: skip
    assert namespace["good"]["s"] is namespace["shared"] is namespace["later"][0]
    assert "No module named 'going'" in next(
        v.reason for v in restored.variables if v.name == "via"
    )


def test_endless_reductions_end(save, monkeypatch):
    module = sys.modules["jupyter_gpu_predict.snapshots.capture"]
    monkeypatch.setattr(module, "longest_stream", lambda: 20 << 20)
    code = """
import itertools
class Deeper:
    def __reduce__(self): return Deeper, (), {"next": Deeper()}
class Longer(list):
    def __reduce__(self): return list, (), None, itertools.count(10**6)
deeper, longer, fine = Deeper(), Longer(), [1]
"""
    _, report = save(code)
    status = {v.name: v.status for v in report.variables if v.name in ("deeper", "longer", "fine")}
    assert status == {"deeper": "tombstone", "longer": "tombstone", "fine": "saved"}
    assert "does not end" in next(v.reason for v in report.variables if v.name == "longer")


def test_many_variables(save, load):
    _, report = save("for i in range(20000): globals()[f'v{i}'] = [i]\nlist_ = v7; str = 'mine'")
    namespace, restored = load(report.snapshot_id)
    assert namespace["v19999"] == [19999]
    assert namespace["list_"] is namespace["v7"]
    assert namespace["str"] == "mine"
    assert json.dumps([v.status for v in restored.variables]).count("restored") == 20003


def test_a_failed_join_loses_no_third_variable(save, load):
    code = (
        _LARGE
        + """
bad = [records[0], *[Record(i) for i in range(8000)], (i for i in ())]
third = [records[0], *[Record(i) for i in range(8000)]]
"""
    )
    _, report = save(code)
    status = {v.name: v.status for v in report.variables}
    assert status["bad"] == "tombstone"
    namespace, restored = load(report.snapshot_id)
    assert {v.name: v.status for v in restored.variables if v.name != "bad"} == {
        "Record": "restored", "records": "restored", "third": "restored"
    }  # fmt: skip
    assert namespace["third"][0] is namespace["records"][0]


@pytest.mark.parametrize(
    "body",
    [
        "raise Wordless()",
        "raise SystemExit",
        "import asyncio; raise asyncio.CancelledError",
        "raise type('Own', (BaseException,), {})",
    ],
)
def test_whatever_an_object_raises_costs_only_itself(save, load, body):
    code = f"""
class Wordless(Exception):
    def __str__(self): raise ValueError
class Evil:
    def __reduce__(self): {body}
evil, kept = Evil(), [1]
"""
    _, report = save(code)
    assert next(v for v in report.variables if v.name == "evil").status == "tombstone"
    namespace, _ = load(report.snapshot_id)
    assert namespace["kept"] == [1]


def test_blocked_modules_and_odd_metaclasses_cost_nothing(save, load, monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked", None)
    _, report = save(
        "class Meta(type):\n"
        "    def __getattribute__(cls, name):\n"
        "        if name == '__module__': raise RuntimeError\n"
        "        return super().__getattribute__(name)\n"
        "class Blocked: pass\n"
        "Blocked.__module__ = 'blocked.inner'\n"
        "class Odd(metaclass=Meta): pass\n"
        "one, two, kept = Blocked(), Odd(), [1]"
    )
    namespace, _ = load(report.snapshot_id)
    assert namespace["kept"] == [1]


def test_classes_loaded_in_spite_of_a_fault_are_those_of_their_instances(
    save, load, tmp_path, monkeypatch
):
    module = tmp_path / "passing_by.py"
    module.write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    _, report = save(
        "import passing_by\nclass C:\n    items = []\nc = C(); c.l = C.items\n"
        "lost = [C.items, passing_by.Thing()]"
    )
    monkeypatch.delitem(sys.modules, "passing_by")
    module.unlink()
    namespace, _ = load(report.snapshot_id)
    assert isinstance(namespace["c"], namespace["C"])
    assert namespace["c"].l is namespace["C"].items


def test_only_an_instance_gets_the_class_that_is_there(folder, save):
    namespace, report = save("class C:\n    items = []\nc = C(); c.l = C.items")
    from jupyter_gpu_predict.snapshots import restore

    restore(folder, report.snapshot_id, bytes(range(32)), namespace, only=["c"])
    assert isinstance(namespace["c"], namespace["C"])


def test_a_working_directory_that_is_gone(save, load, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.syspath_prepend("")
    monkeypatch.chdir(gone)
    gone.rmdir()
    _, report = save("x = [1]")
    namespace, _ = load(report.snapshot_id)
    assert namespace["x"] == [1]
