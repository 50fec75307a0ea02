"""`show`: the tree of a snapshot's variables, read from the streams as data."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest

from jupyter_gpu_predict.errors import BadInputError, SnapshotSignatureError, SnapshotVersionError
from jupyter_gpu_predict.snapshots.inspect import show as module
from jupyter_gpu_predict.snapshots.inspect.show import show
from jupyter_gpu_predict.snapshots.signing import sign

KEY = bytes(range(32))

CODE = """
import collections, datetime, functools
import numpy as np
class Point:
    def __init__(self, x): self.x = x
array = np.zeros((100, 300), "f4")
view = array[::2, 3]
names = {"one": [1, 2.5], 7: ("a", b"bc")}
same = names["one"]
points = [Point(i) for i in range(50)]
text = "word " * 1000
huge = 2**70_000
circle = []; circle.append(circle)
when = datetime.date(2020, 1, 1)
deque = collections.deque([1, 2], 9)
odd = np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])
big = np.arange(3, dtype=">i2")
objects = np.array([1, "x", None], dtype=object)
bound = points[0].__init__
def function(x): return x
later = (i for i in range(3))
"""


@pytest.fixture
def shown(folder, save):
    _, report = save(CODE)

    def run(**keywords):
        tree = show(folder, report.snapshot_id, KEY, **keywords)
        return {entry.label: entry for entry in tree.variables}

    return run


def child(entry, *labels):
    for label in labels:
        (entry,) = (c for c in entry.children if c.label == label)
    return entry


def test_types_lengths_and_shapes(shown):
    found = shown()
    array, view = found["array"], found["view"]
    assert (array.type_name, array.shape, array.dtype) == ("numpy.ndarray", (100, 300), "float32")
    assert array.nbytes >= 120_000
    assert (view.shape, view.dtype, view.shared_with) == ((50,), "float32", ("array",))
    names = found["names"]
    assert (names.type_name, names.length, names.shared_with) == ("dict", 2, ("same",))
    assert child(names, "['one']").shared_with == ("same",)
    assert child(names, "['one']", "[1]").text == "2.5"
    assert child(names, "[7]", "[1]").text == "b'bc'"
    assert found["same"].same_as == "names['one']"
    points = found["points"]
    assert (points.length, len(points.children), points.omitted) == (50, 20, 30)
    assert child(points, "[3]").type_name == "Point"
    assert child(points, "[3]", ".x").text == "3"
    assert found["text"].length == 5000
    assert len(found["text"].text) < 80
    assert "70001 bits" in found["huge"].text
    assert child(found["circle"], "[0]").same_as == "circle"
    assert found["when"].type_name == "datetime.date"
    assert (found["deque"].type_name, found["deque"].length) == ("collections.deque", 2)
    assert (found["big"].shape, found["big"].dtype) == ((3,), "int16 (big-endian)")
    assert found["objects"].shape == (3,)
    assert [c.text for c in found["objects"].children] == ["1", "'x'", "None"]
    assert found["odd"].type_name == "numpy.ndarray"
    assert found["function"].text == "'function'"
    assert found["later"].status == "tombstone"
    assert "generator" in found["later"].reason


def test_depth_and_choice(shown):
    assert all(not entry.children for entry in shown(depth=0).values())
    assert all(not c.children for entry in shown(depth=1).values() for c in entry.children)
    assert list(shown(only=["view", "text"])) == ["view", "text"]
    assert shown(only=["view"])["view"].shared_with == ("array",)
    with pytest.raises(BadInputError, match="no variable 'nothing'"):
        shown(only=["view", "nothing"])


def test_it_is_plain_json(folder, save):
    _, report = save(CODE)
    tree = show(folder, report.snapshot_id, KEY)
    assert json.loads(json.dumps(dataclasses.asdict(tree)))["snapshot_id"] == report.snapshot_id


def test_nothing_is_imported_or_called(folder, save, tmp_path, monkeypatch):
    (tmp_path / "bygone.py").write_text("class Thing:\n    def __init__(self): self.x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    _, report = save("import bygone; thing = bygone.Thing()")
    del sys.modules["bygone"]
    (tmp_path / "bygone.py").write_text("raise SystemExit('imported')")
    tree = show(folder, report.snapshot_id, KEY)
    (thing,) = (e for e in tree.variables if e.label == "thing")
    assert thing.type_name == "bygone.Thing"
    assert "bygone" not in sys.modules


def test_any_python_may_look_but_only_with_the_key(folder, save):
    _, report = save("x = [1]")
    manifest = folder.read(report.snapshot_id)["manifest"] | {"python": "3.99"}
    file = folder.path / "manifests" / f"{report.snapshot_id}.json"
    file.write_text(json.dumps(sign(manifest, KEY)))
    assert show(folder, report.snapshot_id, KEY).python == "3.99"
    with pytest.raises(SnapshotSignatureError):
        show(folder, report.snapshot_id, b"x" * 32)
    file.write_text(json.dumps(sign(manifest | {"format": 9}, KEY)))
    with pytest.raises(SnapshotVersionError):
        show(folder, report.snapshot_id, KEY)


def test_a_stream_too_long_to_look_into_is_still_listed(shown, monkeypatch):
    monkeypatch.setattr(module, "MOST_STREAM_BYTES", 1000)
    points = shown()["text"]
    assert (points.type_name, points.children) == ("str", ())
    assert "too long" in points.reason


def test_a_torch_model(folder, save):
    pytest.importorskip("torch")
    _, report = save(
        "import torch; model = torch.nn.Sequential(torch.nn.Linear(40, 50), torch.nn.ReLU())\n"
        "opt = torch.optim.Adam(model.parameters()); half = torch.ones(3, dtype=torch.bfloat16)\n"
        "base = torch.arange(9000.); part = base[5:9]; twin = base.numpy()"
    )
    found = {e.label: e for e in show(folder, report.snapshot_id, KEY).variables}
    weight = child(found["model"], ".0", ".weight")
    assert weight.type_name == "torch.nn.parameter.Parameter"
    assert (weight.shape, weight.dtype, weight.device) == ((50, 40), "float32", "cpu")
    assert weight.nbytes >= 8000
    assert weight.shared_with == ("opt",)
    assert child(found["opt"], ".param_groups", "[0]").type_name == "dict"
    assert (found["half"].dtype, found["half"].shape) == ("bfloat16", (3,))
    assert found["part"].shared_with == ("base", "twin")
    assert found["part"].shape == (4,)
