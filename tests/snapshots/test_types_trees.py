"""Trees of scikit-learn copy their arrays, so the memory these came in must not stay."""

from __future__ import annotations

import importlib
import sys

import pytest

from jupyter_gpu_predict.snapshots.inspect.verify import verify
from jupyter_gpu_predict.snapshots.rebuild import Rebuild

pytest.importorskip("sklearn")
restoring = importlib.import_module("jupyter_gpu_predict.snapshots.restore")

FOREST = """
import numpy as np
from sklearn.ensemble import RandomForestClassifier
rng = np.random.default_rng(0)
X = rng.standard_normal((3000, 4))
forest = RandomForestClassifier(3, random_state=0).fit(X, rng.integers(0, 2, 3000))
trees = [one.tree_ for one in forest.estimators_]
"""

KEY = bytes(range(32))


@pytest.fixture
def rebuilds(monkeypatch):
    """Every `Rebuild` that a restore makes."""
    made = []
    monkeypatch.setattr(restoring, "Rebuild", lambda *a: made.append(Rebuild(*a)) or made[-1])
    return made


def same_trees(found, expected):
    for tree, other in zip(found, expected, strict=True):
        assert (tree.value == other.value).all()
        assert (tree.threshold == other.threshold).all()


def test_trees_come_back_and_the_memory_of_their_state_goes(folder, save, load, rebuilds):
    expected, report = save(FOREST)
    namespace, found = load(report.snapshot_id)
    assert {v.status for v in found.variables} == {"restored"}
    same_trees(namespace["trees"], expected["trees"])
    assert all(one.tree_ in namespace["trees"] for one in namespace["forest"].estimators_)
    left = [owner.nbytes for owner in rebuilds[0].buffers.values()]
    assert left == [namespace["X"].nbytes]
    assert verify(folder, report.snapshot_id, KEY).verified


def test_trees_come_back_where_their_stream_is_loaded_twice(save, load, tmp_path, monkeypatch):
    module = tmp_path / "gone_tomorrow.py"
    module.write_text("class Record:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected, report = save(
        f"{FOREST}\nimport gone_tomorrow\nbad = [forest, gone_tomorrow.Record()]"
    )
    monkeypatch.delattr(sys.modules["gone_tomorrow"], "Record")
    namespace, found = load(report.snapshot_id, check=False)
    assert [v.name for v in found.variables if v.status == "tombstone"] == ["bad"]
    same_trees(namespace["trees"], expected["trees"])
