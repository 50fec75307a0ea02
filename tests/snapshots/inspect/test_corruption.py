"""Damaged and forged snapshots: each ends in its own error or in what was saved, never between."""

from __future__ import annotations

import collections
import json
import random

import numpy as np
import pytest
from corruptions import EXACT, KEY, WAYS, BreakableStore, forge_a_chunk, woken

from jupyter_gpu_predict.errors import (
    GpuPredictError,
    SnapshotDamagedError,
    SnapshotIncompleteError,
    SnapshotSignatureError,
)
from jupyter_gpu_predict.snapshots import open_store, restore, transfer
from jupyter_gpu_predict.snapshots.inspect.show import show
from jupyter_gpu_predict.snapshots.signing import sign

CORRUPTIONS = 500


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Patches of streams as small as those here, so that they are broken too.
        patch.setattr(transfer, "PATCH_FROM_BYTES", 1 << 10)
        return BreakableStore(tmp_path_factory.mktemp("store"))


def same_as_saved(saved, found):
    assert (found["array"] == saved["array"]).all()
    assert np.shares_memory(found["view"], found["array"])
    assert (found["view"] == saved["view"]).all()
    assert found["names"] == saved["names"]
    assert found["same"] is found["names"]["one"]
    assert [p.x for p in found["points"]] == list(range(20))
    assert found["double"](4) == 8
    assert found["items"] == saved["items"]
    assert found["references"] == saved["references"]
    assert found["references"][0] is found["items"][-1]
    assert found["count"] == 1
    assert found["canary"].name == "bird"


def outcome(store):
    """Restore the broken snapshot; return what came of it, having checked all that must hold."""
    kept = object()
    namespace = {"kept": kept, "array": "former"}
    woken.clear()
    refused = None
    try:
        restore(open_store(store.path), store.broken, KEY, namespace)
    except GpuPredictError as error:
        refused = error
    if refused is not None:
        assert not woken, f"unpickled before it was refused: {refused}"
        assert namespace == {"kept": kept, "array": "former"}
        assert str(refused).strip()
        return type(refused)
    assert woken == ["bird"]
    same_as_saved(store.namespace, namespace)
    return type(None)


def test_the_canary_sings(store):
    """Without this, the other tests could pass because nothing is ever unpickled."""
    assert outcome(store) is type(None)
    manifest = json.loads(json.dumps(store.document["manifest"]))
    forge_a_chunk(store, random.Random(1))
    manifest = json.loads(store.manifest.read_text())["manifest"]
    store.manifest.write_text(json.dumps(sign(manifest, KEY)))
    woken.clear()
    restore(open_store(store.path), store.broken, KEY, {})
    assert "forged" in woken
    store.mend()


def test_500_corruptions(store):
    rng = random.Random(20)
    ways = [*WAYS, *EXACT]
    seen = collections.Counter()
    for number in range(CORRUPTIONS):
        way = ways[number % len(ways)]
        expected = way(store, rng)
        allowed = WAYS.get(way) or ((type(None),) if expected is None else (expected,))
        got = outcome(store)
        assert issubclass(got, allowed), (way.__name__, got)
        seen[got] += 1
        # What looks into it without loading it trusts nothing either.
        woken.clear()
        try:
            shown = show(open_store(store.path), store.broken, KEY, depth=1)
        except GpuPredictError:
            assert got is not type(None)
        else:
            assert {e.label for e in shown.variables} >= {"array", "points", "canary"}
        assert not woken
        store.mend()
    assert outcome(store) is type(None)
    assert seen[SnapshotDamagedError] > 100
    assert seen[SnapshotSignatureError] > 80
    assert seen[SnapshotIncompleteError] > 30
