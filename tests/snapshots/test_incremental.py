"""A second save costs what has changed; saves can be watched, cancelled and left to a child."""

from __future__ import annotations

import os
import signal
import threading
import types

import pytest

from jupyter_gpu_predict.errors import BadInputError, SnapshotCancelledError, SnapshotError
from jupyter_gpu_predict.snapshots import background, begin_capture, capture, restore
from jupyter_gpu_predict.snapshots.transfer import ChunkWriter, cache_of

KEY = bytes(range(32))
NAMES = {"name": "a", "now_s": 1.7e9, "kernel_id": "k"}
_STATE = """
import numpy as np
arrays = [np.random.default_rng(i).standard_normal(600_000) for i in range(4)]
class Item:
    def __init__(self, i): self.i, self.name, self.before = i, f"item-{i}", None
items = [Item(i) for i in range(20_000)]
for one, other in zip(items, items[1:]): other.before = one.i
by_name = {item.name: item for item in items}
"""


@pytest.fixture
def session():
    namespace = types.ModuleType("__main__").__dict__
    exec(_STATE, namespace)
    return namespace


def _restored(folder, snapshot_id, **options):
    namespace = types.ModuleType("__main__").__dict__
    return namespace, restore(folder, snapshot_id, KEY, namespace, **options)


def test_what_has_not_changed_is_not_written(folder, session):
    first = capture(session, folder, KEY, **NAMES)
    assert first.bytes_written >= first.total_bytes > 20_000_000
    again = capture(session, folder, KEY, **NAMES)
    assert again.bytes_written < 20_000
    session["arrays"][2][:10] = 5.0
    changed = capture(session, folder, KEY, **NAMES)
    assert changed.bytes_written < 4_800_000 + 20_000
    namespace, _ = _restored(folder, changed.snapshot_id)
    assert namespace["arrays"][2][3] == 5.0
    old, _ = _restored(folder, first.snapshot_id)
    assert old["arrays"][2][3] != 5.0


@pytest.mark.parametrize("place", [0, 10_000, 20_000])
def test_an_insertion_writes_little(folder, session, place):
    first = capture(session, folder, KEY, **NAMES)
    streams = first.total_bytes - 4 * 4_800_000
    item = session["Item"](-1)
    session["items"].insert(place, item)
    session["by_name"][item.name] = item
    second = capture(session, folder, KEY, **NAMES)
    assert second.bytes_written < streams / 10
    for report, length in ((first, 20_000), (second, 20_001)):
        namespace, restored = _restored(folder, report.snapshot_id)
        assert {v.status for v in restored.variables} == {"restored"}
        assert len(namespace["items"]) == length
        assert namespace["by_name"]["item-7"] in namespace["items"]
    # The patch needs what it was made against, also when that snapshot is gone.
    folder.delete(first.snapshot_id)
    namespace, _ = _restored(folder, second.snapshot_id)
    assert namespace["items"][place].i == -1


def test_a_long_stream_with_a_patch_is_not_put_together_in_memory(folder, session, monkeypatch):
    capture(session, folder, KEY, **NAMES)
    item = session["Item"](-1)
    session["items"].insert(10_000, item)
    session["by_name"][item.name] = item
    report = capture(session, folder, KEY, **NAMES)
    assert folder.read(report.snapshot_id)["manifest"]["patched"]
    monkeypatch.setattr("jupyter_gpu_predict.snapshots.reading.KEPT_STREAM_BYTES", 100_000)
    monkeypatch.delattr("jupyter_gpu_predict.snapshots.reading.unpatch")
    namespace, _ = _restored(folder, report.snapshot_id)
    assert [i.i for i in namespace["items"]] == [i.i for i in session["items"]]
    assert namespace["by_name"]["item-7"] in namespace["items"]


def test_memory_that_changes_while_it_is_saved_is_saved_as_it_was_at_some_moment(
    folder, monkeypatch
):
    """What is written under a name must be what was hashed, or the store would lie."""
    np = pytest.importorskip("numpy")
    session = types.ModuleType("__main__").__dict__
    session["a"] = array = np.zeros(3_000_000)
    stop = threading.Event()

    def scribble():
        while not stop.is_set():
            array[:] += 1

    thread = threading.Thread(target=scribble)
    thread.start()
    try:
        report = capture(session, folder, KEY, **NAMES)
    finally:
        stop.set()
        thread.join()
    _restored(folder, report.snapshot_id)


def test_a_bytearray_that_changes_is_saved_as_it_was_at_some_moment(folder, monkeypatch):
    session = types.ModuleType("__main__").__dict__
    session["raw"] = raw = bytearray(3 << 20)
    session["x"] = [1]
    add = ChunkWriter._add

    def changed_meanwhile(self, name, data):
        raw[:] = bytes([raw[0] ^ 255]) * len(raw)
        add(self, name, data)

    monkeypatch.setattr(ChunkWriter, "_add", changed_meanwhile)
    report = capture(session, folder, KEY, **NAMES)
    namespace, _ = _restored(folder, report.snapshot_id)
    assert namespace["x"] == [1]
    assert len(set(namespace["raw"])) == 1


def test_memory_shared_with_other_processes_is_saved_as_it_was(folder, session):
    torch = pytest.importorskip("torch")
    session["shared"] = tensor = torch.zeros(500_000).share_memory_()
    saving = begin_capture(session, folder, KEY, **NAMES)
    tensor.fill_(7.0)
    report = saving.result()
    namespace, _ = _restored(folder, report.snapshot_id)
    assert float(namespace["shared"].sum()) == 0.0


def test_progress_reaches_the_total(folder, session, monkeypatch):
    monkeypatch.setattr("jupyter_gpu_predict.snapshots.transfer.REPORT_S", 0.0)
    seen = []
    report = capture(session, folder, KEY, **NAMES, progress=lambda *at: seen.append(at))
    assert seen[-1] == (report.total_bytes, report.total_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    monkeypatch.setattr("jupyter_gpu_predict.snapshots.reading.REPORT_S", 0.0)
    read = []
    _restored(folder, report.snapshot_id, progress=lambda *at: read.append(at))
    assert read[-1][0] == read[-1][1] > 0


def test_a_cancelled_save_leaves_nothing(folder, session):
    kept = capture(session, folder, KEY, **NAMES)
    before = sorted(p.name for p in folder.path.rglob("*"))
    session["more"] = session["np"].random.default_rng(9).standard_normal(2_000_000)
    asked = iter([False, False, True])
    with pytest.raises(SnapshotCancelledError):
        capture(session, folder, KEY, **NAMES, cancelled=lambda: next(asked, True))
    assert sorted(p.name for p in folder.path.rglob("*")) == before
    assert [info.snapshot_id for info in folder.list()] == [kept.snapshot_id]


def test_a_cancelled_restore_changes_nothing(folder, session):
    report = capture(session, folder, KEY, **NAMES)
    namespace = {"items": "mine"}
    with pytest.raises(SnapshotCancelledError):
        restore(folder, report.snapshot_id, KEY, namespace, cancelled=lambda: True)
    assert namespace == {"items": "mine"}


def test_only_some_variables(folder, session):
    exec("model = [items[3]]; opt = {'m': model}; def_ = lambda: 1", session)
    report = capture(session, folder, KEY, **NAMES)
    namespace, restored = _restored(folder, report.snapshot_id, only=["model", "opt"])
    assert {v.name for v in restored.variables} == {"model", "opt"}
    assert not {"items", "arrays"} & namespace.keys()
    assert namespace["opt"]["m"] is namespace["model"]
    with pytest.raises(BadInputError, match="'absent'"):
        restore(folder, report.snapshot_id, KEY, namespace, only=["absent"])
    # Within the same session its class is still the one.
    restore(folder, report.snapshot_id, KEY, session, only=["model"])
    assert type(session["model"][0]) is session["Item"]
    exec("class Item:\n    changed = True", session)
    restore(folder, report.snapshot_id, KEY, session, only=["model"])
    assert type(session["model"][0]) is not session["Item"]


def test_a_save_in_the_background_has_the_state_of_its_beginning(folder, session):
    saving = begin_capture(session, folder, KEY, **NAMES)
    session["arrays"][0][:] = -1.0
    session["items"].clear()
    report = saving.result()
    assert saving.pid is None
    assert saving.poll().finished
    assert saving.poll().done_bytes == report.total_bytes
    namespace, _ = _restored(folder, report.snapshot_id)
    assert len(namespace["items"]) == 20_000
    assert namespace["arrays"][0][0] != -1.0
    # What the child learned, the next save knows.
    assert cache_of(folder).fingerprints
    again = begin_capture(session, folder, KEY, **NAMES).result()
    assert again.bytes_written < 6_000_000


def test_a_background_save_can_be_cancelled_or_die(folder, session, monkeypatch):
    kept = capture(session, folder, KEY, **NAMES)
    started = os.pipe()

    def slow(self, data):
        os.write(started[1], b".")
        signal.pause()

    session["fresh"] = session["np"].random.default_rng(5).standard_normal(900_000)
    with monkeypatch.context() as patch:
        patch.setattr(ChunkWriter, "_chunk", slow)
        patch.setattr(background, "let_go_of_files", lambda pipe: None)
        for end, error in (
            (lambda saving: saving.cancel(), SnapshotCancelledError),
            (lambda saving: os.kill(saving.pid, signal.SIGKILL), SnapshotError),
        ):
            saving = begin_capture(session, folder, KEY, **NAMES)
            os.read(started[0], 1)
            end(saving)
            with pytest.raises(error):
                saving.result()
    assert [info.snapshot_id for info in folder.list()] == [kept.snapshot_id]
    _restored(folder, kept.snapshot_id)


def test_a_background_save_reports_what_went_wrong(folder, session, monkeypatch):
    def fail(self, *arguments):
        raise OSError("the disk is on fire")

    monkeypatch.setattr(ChunkWriter, "_chunk", fail)
    with pytest.raises(SnapshotError, match="on fire"):
        begin_capture(session, folder, KEY, **NAMES).result()
    assert folder.list() == []


def test_versions_that_differ_are_said(folder, session, monkeypatch):
    report = capture(session, folder, KEY, **NAMES)
    _, same = _restored(folder, report.snapshot_id)
    assert same.differences == ()
    monkeypatch.setattr(session["np"], "__version__", "0.0.1")
    _, other = _restored(folder, report.snapshot_id)
    assert any(d.startswith("numpy was") and "0.0.1" in d for d in other.differences)
