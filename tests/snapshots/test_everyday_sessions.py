"""Each everyday session is saved in one process and used in a fresh one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("everyday", Path(__file__).with_name("everyday.py"))
everyday = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(everyday)

_COMMON = """
import json, runpy, sys, types
from jupyter_gpu_predict.snapshots import SnapshotFolder, Tombstone, capture, digests, restore
from jupyter_gpu_predict.snapshots.settings import apply_settings, capture_settings
folder, key = SnapshotFolder(sys.argv[1]), b"k" * 32
sessions = runpy.run_path(sys.argv[2])
CASES, CONTINUED = sessions["CASES"], sessions["CONTINUED"]
out = {}
def fresh():
    sys.modules["__main__"] = types.ModuleType("__main__")
    return vars(sys.modules["__main__"])
"""
_SAVE = (
    _COMMON
    + """
for number, (case, (code, _)) in enumerate(CASES.items()):
    space = fresh()
    try:
        exec(code, space)
        report = capture(space, folder, key, name=f"case {number}", now_s=1.7e9, kernel_id="k")
    except Exception as error:
        out[case] = repr(error)
        continue
    out[case] = {v.name: [v.status, v.reason] for v in report.variables}
def state(space):
    return digests(space, [n for n in space if not n.startswith("__")])
for case, (code, later) in CONTINUED.items():
    space = fresh()
    exec(code, space)
    settings, faults = capture_settings()
    extra = {"settings": settings}
    capture(space, folder, key, name=case, now_s=1.7e9, kernel_id="k", extra=extra)
    before = state(space)
    exec(later, space)
    out[case] = [before, state(space), faults]
print(json.dumps(out), file=sys.__stdout__)
"""
)
_LOAD = (
    _COMMON
    + """
for number, (case, (_, checks)) in enumerate(CASES.items()):
    space, faults = fresh(), []
    report = restore(folder, folder.find(f"case {number}"), key, space)
    expected = set()
    for check in checks:
        if check.startswith("*tombstones*"):
            expected = set(check.split()[1:])
            continue
        try:
            value = eval(check, space)
            if not bool(value):
                faults.append(f"{check}: {value!r}")
        except Exception as error:
            faults.append(f"{check}: {error!r}")
    for v in report.variables:
        wanted = "tombstone" if v.name in expected else "restored"
        if v.status != wanted:
            faults.append(f"{v.name} {v.status}: {v.reason}")
        if v.status == "tombstone" and type(space[v.name]) is not Tombstone:
            faults.append(f"{v.name} is no tombstone")
    out[case] = faults
def state(space):
    return digests(space, [n for n in space if not n.startswith("__")])
for case, (code, later) in CONTINUED.items():
    space = fresh()
    report = restore(folder, folder.find(case), key, space)
    faults = apply_settings(report.extra["settings"])
    before = state(space)
    exec(later, space)
    out[case] = [before, state(space), faults]
print(json.dumps(out), file=sys.__stdout__)
"""
)


@pytest.fixture(scope="module")
def outcome(python, tmp_path_factory):
    arguments = (tmp_path_factory.mktemp("everyday"), Path(__file__).with_name("everyday.py"))
    saved = python(_SAVE, *arguments, PYTHONHASHSEED="1")
    return saved, python(_LOAD, *arguments, PYTHONHASHSEED="2")


@pytest.mark.parametrize("case", everyday.CASES)
def test_session_goes_on_in_a_fresh_process(outcome, case):
    saved, loaded = outcome
    assert isinstance(saved[case], dict), saved[case]
    assert loaded[case] == []


@pytest.mark.parametrize("case", everyday.CONTINUED)
def test_work_goes_on_bit_by_bit(outcome, case):
    (before, after, faults), (before_there, after_there, faults_there) = (o[case] for o in outcome)
    assert before_there == before
    assert after_there == after
    assert {n for n in before if after[n] != before[n]}
    assert not any("opaque" in value for value in after.values())
    assert faults == faults_there == []
