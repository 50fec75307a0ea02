"""What may be left out of a snapshot, and what of it is kept."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jupyter_gpu_predict.snapshots import Tombstone, capture, open_store, restore
from jupyter_gpu_predict.snapshots.digest import digest
from jupyter_gpu_predict.snapshots.digest_bounded import (
    BYTES_EACH,
    NODES_EACH,
    NODES_IN_ALL,
    bounded_digests,
    digest_in,
)
from jupyter_gpu_predict.snapshots.omission import Omission

KEY = bytes(32)
SHARING = """
import numpy as np
lone = np.arange(200_000)
box = {"values": np.arange(200_000) + 1}
streamed = bytearray(2_000_000)
small = np.arange(9)
same = twin = np.arange(200_000) + 2
base = np.arange(200_000) + 3; tip = base[:3]
over = bytearray(2_000_000); window = np.frombuffer(over, dtype="u1")[5:9]
held = np.arange(200_000) + 4
def uses(values=held): pass
shut = np.arange(200_000) + 5
def closed():
    values = shut
    return lambda: values
closed = closed()
out = np.arange(200_000) + 6
viewed = bytearray(2_000_000); view = memoryview(viewed)[3:]
import pickle
class Exporting:
    def __init__(self, memory): self.memory = memory
    def __reduce_ex__(self, protocol): return Exporting, (pickle.PickleBuffer(self.memory),)
first = Exporting(pool := bytearray(2_000_000)); second = Exporting(pool); del pool
third = Exporting(memoryview(pool := bytearray(2_000_000))[:1_500_000])
fourth = Exporting(memoryview(pool)[100_000:]); del pool
words = [str(i) for i in range(200_000)]
"""


def saved(
    folder: Path, *, cells: bool = True, choose: Any = None
) -> tuple[Any, dict[str, Any], set[str], Any]:
    namespace = dict(types.ModuleType("__main__").__dict__)
    exec(SHARING, namespace)
    offered: set[str] = set()

    def everything(alone: Mapping[str, int], stored: Collection[str]) -> dict[str, Omission]:
        assert offered.issubset(stored)
        offered.update(alone)
        return {n: Omission(digest(namespace[n]), "left out", ("np",)) for n in alone}

    store = open_store(folder)
    extra = {"outputs": {1: namespace["out"]}, **({"cells": [1]} if cells else {})}
    report = capture(
        namespace, store, KEY, name="n", now_s=1e9, kernel_id="k",
        extra=extra, choose=choose or everything,
    )  # fmt: skip
    return store, namespace, offered, report


def test_only_what_shares_nothing_with_anything_may_be_left_out(tmp_path: Path) -> None:
    store, namespace, offered, report = saved(tmp_path)
    assert offered == {"lone", "box"}
    full = saved(tmp_path / "full", choose=lambda alone, stored: {})[-1]
    assert 3_200_000 < full.total_bytes - report.total_bytes < 3_300_000
    fresh: dict[str, Any] = dict(types.ModuleType("__main__").__dict__)
    loaded = restore(store, report.snapshot_id, KEY, fresh)
    reports = {v.name: v for v in loaded.variables}
    assert {n for n, v in reports.items() if v.status == "tombstone"} == offered
    assert set(loaded.left_out) == offered
    assert all(type(fresh[n]) is Tombstone for n in offered)
    assert all(reports[n].digest == digest(namespace[n]) for n in offered)
    assert fresh["tip"].base is fresh["base"]
    assert fresh["same"] is fresh["twin"]


def test_without_a_record_of_the_cells_nothing_is_left_out(tmp_path: Path) -> None:
    _, _, offered, report = saved(tmp_path, cells=False)
    assert offered == set()
    assert {v.status for v in report.variables} == {"saved"}


def test_a_choice_that_fails_or_names_what_was_not_offered_changes_nothing(tmp_path: Path) -> None:
    def fails(alone: Mapping[str, int], stored: Collection[str]) -> dict[str, Omission]:
        raise ZeroDivisionError

    def wrong(alone: Mapping[str, int], stored: Collection[str]) -> dict[str, Omission]:
        return {"base": Omission("d", "r", ())}

    for choose in (fails, wrong):
        report = saved(tmp_path, choose=choose)[-1]
        assert {v.status for v in report.variables} == {"saved"}


def test_chosen_variables_come_with_the_cells_and_what_these_need(tmp_path: Path) -> None:
    store, _, _, report = saved(tmp_path)
    fresh: dict[str, Any] = {"__name__": "__main__"}
    loaded = restore(store, report.snapshot_id, KEY, fresh, only=["lone"], with_cells=True)
    assert sorted(v.name for v in loaded.variables) == ["lone", "np"]
    assert (loaded.left_out, loaded.extra) == (("lone",), {"cells": [1]})
    plain = restore(store, report.snapshot_id, KEY, {}, only=["lone"])
    assert ([v.name for v in plain.variables], plain.extra) == (["lone"], {})


class Endless:
    def __reduce__(self) -> Any:
        return Endless, (Endless(),)


class Broken:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "value",
    [
        [object() for _ in range(NODES_EACH)],
        np.zeros(BYTES_EACH + 1, "u1"),
        "a" * (BYTES_EACH + 1),
        ["a" * BYTES_EACH, "b", "c" * BYTES_EACH],
        {"key": bytearray(BYTES_EACH + 1)},
        dict.fromkeys(range(NODES_EACH + 1)),
        memoryview(bytearray(BYTES_EACH + 1)),
        Endless(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_digest_that_would_take_long_is_not_taken(value: Any) -> None:
    lock = types.SimpleNamespace(rows=(i for i in ()), values=[1, 2])
    found = bounded_digests({"large": value, "small": lock}, ["large", "small", "gone"])
    assert found == {"small": digest(lock)}
    assert "opaque:generator" in found["small"]


def test_all_digests_of_a_save_together_are_bounded() -> None:
    namespace = {f"v{i}": [[] for _ in range(NODES_EACH // 4)] for i in range(100)}
    count = len(bounded_digests(namespace, namespace))
    assert 0 < count <= NODES_IN_ALL // (NODES_EACH // 4)


def test_the_namespace_itself_is_not_walked() -> None:
    namespace: dict[str, Any] = {"broken": Broken(), "many": list(range(10 * NODES_EACH))}
    namespace["own"] = [namespace]
    found = bounded_digests(namespace, ["own"])
    assert found == {"own": digest_in(namespace, namespace["own"])}
    namespace["more"] = 1
    assert bounded_digests(namespace, ["own"]) == found


def test_a_tombstone_has_the_digest_of_what_it_stands_for(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"held": [(i for i in ()), 5], "np": np}
    store = open_store(tmp_path)
    report = capture(namespace, store, KEY, name="n", now_s=1e9, kernel_id="k")
    loaded = restore(store, report.snapshot_id, KEY, {})
    [held] = [v for v in loaded.variables if v.status == "tombstone"]
    assert held.digest == digest(namespace["held"])
    assert loaded.left_out == ()
