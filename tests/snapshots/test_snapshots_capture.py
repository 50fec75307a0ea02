from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.snapshots import Tombstone, TombstoneError, digest
from jupyter_gpu_predict.snapshots import restore as restore_snapshot

shared_values = st.recursive(
    st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=10,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), shared_values, max_size=5))
def test_any_containers_come_back(save, load, variables):
    variables["both"] = [*variables.values()]
    _, report = save(**variables)
    namespace, restored = load(report.snapshot_id)
    for name, value in variables.items():
        assert namespace[name] == value
        assert digest(namespace[name]) == digest(value)
    for name, value in zip(list(variables)[:-1], namespace["both"], strict=True):
        if isinstance(value, (list, dict)):
            assert namespace[name] is value
    assert all(v.status == "restored" for v in restored.variables)


def test_reports_go_into_json(save, load):
    _, report = save("import os\nx = [1]; gen = (i for i in x); holder = {'deep': [0, gen]}")
    by_name = {v.name: v for v in report.variables}
    assert by_name["x"].status == "saved"
    assert by_name["x"].digest == digest([1])
    assert by_name["os"].type_name == "module"
    assert by_name["gen"].status == "tombstone"
    assert "generator" in by_name["gen"].reason
    assert by_name["holder"].path == "['deep'][1]"
    json.dumps(dataclasses.asdict(report))
    _, restored = load(report.snapshot_id)
    json.dumps([dataclasses.asdict(v) for v in restored.variables])


def test_one_bad_variable_does_not_spoil_what_it_shares(save, load):
    code = "common = [1]; good = {'c': common}; bad = [common, (i for i in ())]"
    _, report = save(code)
    namespace, _ = load(report.snapshot_id)
    assert namespace["good"]["c"] is namespace["common"]
    assert type(namespace["bad"]) is Tombstone


def test_tombstone_says_what_it_was_when_used(save, load):
    _, report = save("gen = (i for i in ())")
    namespace, _ = load(report.snapshot_id)
    stone = namespace["gen"]
    assert "gen" in repr(stone)
    assert isinstance(stone._repr_html_() if hasattr(stone, "_repr_html_") else "", str)
    uses = (next, list, len, bool, int, str, lambda s: s + 1, lambda s: s.send(None), lambda s: s())
    for use in (*uses, lambda s: s[0], lambda s: setattr(s, "a", 1), lambda s: s == 1):
        with pytest.raises(TombstoneError, match=r"'gen' was a generator.*Run the cell"):
            use(stone)


def test_tombstones_are_saved_again(save, load):
    _, report = save("gen = (i for i in ())")
    namespace, _ = load(report.snapshot_id)
    _, again = save(gen=namespace["gen"])
    later, _ = load(again.snapshot_id)
    assert repr(later["gen"]) == repr(namespace["gen"])


def test_hidden_names_stay_and_names_are_replaced(save, load):
    _, report = save("x = 1; _private = 2; secret = 3", hidden={"secret"})
    namespace, _ = load(report.snapshot_id, x="old", mine="kept")
    assert namespace["x"] == 1
    assert namespace["_private"] == 2
    assert namespace["mine"] == "kept"
    assert "secret" not in namespace


def test_extra_shares_objects_with_variables(save, load):
    value = [1]
    extra = {"out": {1: value, 2: (i for i in ()), "k": "text"}, "count": 7}
    _, report = save(value=value, extra=extra)
    assert report.not_saved == ("out[2]: a generator's place in its code cannot be saved",)
    namespace, restored = load(report.snapshot_id)
    assert restored.extra["count"] == 7
    assert restored.extra["out"] == {1: [1], "k": "text"}
    assert restored.extra["out"][1] is namespace["value"]


_EXPLOSIVE = """
class Raises:
    def __reduce__(self): raise RuntimeError('no')
class Endless:
    def __reduce__(self): return Endless, (Endless(),)
class Liar:
    def __reduce__(self): return 42
class Late:
    def __setstate__(self, s): raise ValueError('not here')
class Attr:
    @property
    def __dict__(self): raise KeyError('odd')
raises, endless, liar, late = Raises(), Endless(), Liar(), Late()
late.x = 1
fine = [1]
class Shy:
    def __getattr__(self, name): raise RuntimeError(name)
shy = Shy()
"""


def test_hostile_objects_become_tombstones(save, load):
    _, report = save(_EXPLOSIVE)
    status = {v.name: v.status for v in report.variables}
    assert {n for n, s in status.items() if s == "tombstone"} == {"raises", "endless", "liar"}
    restored, found = load(report.snapshot_id)
    bad = {v.name: v.reason for v in found.variables if v.status != "restored"}
    assert set(bad) == {"raises", "endless", "liar", "late"}
    assert "not here" in bad["late"]
    assert "RuntimeError: no" in bad["raises"]
    assert restored["fine"] == [1]
    assert type(restored["shy"]).__name__ == "Shy"


def test_recursion_without_end_says_so(save):
    _, report = save(_EXPLOSIVE)
    reason = next(v.reason for v in report.variables if v.name == "endless")
    assert "nested too deeply" in reason
    assert sys.getrecursionlimit() < 250_000


def test_failed_restore_leaves_the_namespace(save, folder, monkeypatch):
    _, report = save("x = 1; y = 2")

    module = sys.modules["jupyter_gpu_predict.snapshots.restore"]
    load = module._load

    def broken(*arguments):
        load(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_load", broken)
    namespace = {"x": "old", "z": 3}
    with pytest.raises(KeyboardInterrupt):
        restore_snapshot(folder, report.snapshot_id, bytes(range(32)), namespace)
    assert namespace == {"x": "old", "z": 3}


def test_a_changed_value_is_a_mismatch(save, load):
    code = """
class Odd:
    def __init__(self): self.v = 1
    def __setstate__(self, state): self.v = 2
odd, fine = Odd(), 3
"""
    _, report = save(code)
    _, restored = load(report.snapshot_id)
    assert {v.name: v.status for v in restored.variables}["odd"] == "mismatch"
    assert {v.name: v.status for v in restored.variables}["fine"] == "restored"
    _, unchecked = load(report.snapshot_id, check=False)
    assert {v.status for v in unchecked.variables} == {"restored"}


def test_capture_changes_nothing(save):
    code = "import numpy as np; a = np.arange(5000); b = [a]; f = lambda: a"
    namespace, first = save(code)
    limit, hook = sys.getrecursionlimit(), gc.isenabled()
    before = {name: id(value) for name, value in namespace.items()}
    _, second = save(**{k: v for k, v in namespace.items() if not k.startswith("__")})
    assert {name: id(value) for name, value in namespace.items()} == before
    assert (sys.getrecursionlimit(), gc.isenabled()) == (limit, hook)
    assert first.variables[1].digest == second.variables[1].digest


def test_live_graph_is_refused_by_name(save):
    pytest.importorskip("torch")
    code = "import torch; w = torch.ones(3, requires_grad=True); y = (w * w).sum(); z = y.detach()"
    _, report = save(code)
    by_name = {v.name: v for v in report.variables}
    assert by_name["y"].status == "tombstone"
    assert "live autograd graph" in by_name["y"].reason
    assert "detach()" in by_name["y"].reason
    assert by_name["w"].status == by_name["z"].status == "saved"


def test_spent_graph_cannot_run_backward_again(save, load):
    torch = pytest.importorskip("torch")
    code = "import torch; w = torch.ones(3, requires_grad=True); y = (w * w).sum(); y.backward()"
    _, report = save(code)
    namespace, _ = load(report.snapshot_id)
    assert torch.equal(namespace["w"].grad, torch.full((3,), 2.0))
    with pytest.raises(RuntimeError, match="a second time"):
        namespace["y"].backward()


def test_missing_library_spoils_only_its_variables(save, load, tmp_path, monkeypatch):
    (tmp_path / "passing_module.py").write_text("class Thing:\n    v = 1\ndef helper(): return 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, report = save("import passing_module as pm; thing = pm.Thing(); x = [1]; h = pm.helper")
    namespace, _ = load(report.snapshot_id)
    assert namespace["h"]() == 2
    monkeypatch.delitem(sys.modules, "passing_module")
    (tmp_path / "passing_module.py").unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for cached in tmp_path.rglob("*.pyc"):
        cached.unlink()
    namespace, restored = load(report.snapshot_id)
    assert {v.name for v in restored.variables if v.status == "tombstone"} == {"pm", "thing", "h"}
    assert namespace["x"] == [1]


def test_modules_are_found_where_the_session_found_them(save, load, tmp_path, monkeypatch):
    (tmp_path / "beside_notebook.py").write_text("def helper(): return 5\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        _, report = save("from beside_notebook import helper")
    monkeypatch.delitem(sys.modules, "beside_notebook")
    path = list(sys.path)
    namespace, _ = load(report.snapshot_id)
    assert namespace["helper"]() == 5
    assert sys.path == path


_ALONE = """
import importlib.util, json, sys
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(
    "jupyter_gpu_predict", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
module = sys.modules["jupyter_gpu_predict"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from jupyter_gpu_predict.snapshots import capture, open_store, restore
folder, space = open_store(sys.argv[2]), {}
x, f = [1], lambda: x
names = dict(name="a", now_s=1.0, kernel_id="k")
report = capture(globals(), folder, b"k" * 32, **names)
restore(folder, report.snapshot_id, b"k" * 32, space)
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
alien = sorted(packages - set(sys.stdlib_module_names) - {"jupyter_gpu_predict"})
print(json.dumps([space["f"]() is space["x"], alien]))
"""


def test_works_alone_from_its_folder(tmp_path):
    """As in a kernel whose environment lacks this package and everything else."""
    package = Path(restore_snapshot.__code__.co_filename).parents[1]
    command = [sys.executable, "-I", "-S", "-c", _ALONE, str(package), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, []]
