"""What no snapshot needs goes, and nothing that one needs, whoever writes meanwhile."""

from __future__ import annotations

import json
import threading

import pytest
from store_saves import another, check, document, new_id, objects, put, save, some

from jupyter_gpu_predict.errors import (
    NotFoundError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotIncompleteError,
)
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.stores import garbage, markers


def test_delete_keeps_what_others_need(store):
    shared, first_only, second_only = some(100_000, 30_000, 20_000)
    first, _ = save(store, [shared, first_only])
    second, _ = save(store, [shared, second_only])
    store.delete(first)
    check(another(store), second)
    with pytest.raises(NotFoundError):
        store.delete(first)
    store.delete(second)
    assert objects(store) == {}


def test_a_sparse_pack_is_compacted_under_a_reader(store, monkeypatch):
    monkeypatch.setattr(garbage, "COMPACT_BYTES", 1000)
    kept, dropped = some(50_000, 100_000)
    first, _ = save(store, [kept, dropped])
    second, _ = save(store, [kept])
    reader = another(store)
    check(reader, first)
    (old,) = [name for name in objects(store) if name.startswith("packs/")]
    store.delete(first)
    (new,) = [name for name in objects(store) if name.startswith("packs/")]
    assert new != old
    assert 50_000 < objects(store)[new] < 51_000
    for one in (reader, store, another(store)):
        check(one, second)
    with pytest.raises(SnapshotIncompleteError):
        reader.read_chunk(chunk_name(dropped), memoryview(bytearray(100_000)))


def test_many_sparse_packs_become_one(store, monkeypatch):
    monkeypatch.setattr(garbage, "COMPACT_BYTES", 100_000)
    kept = some(*[10_000] * 3)
    ids = [save(store, [chunk, *some(40_000)])[0] for chunk in kept]
    last, _ = save(store, kept)
    store.delete(ids[0])
    store.delete(ids[1])
    assert len(store._backend.entries("packs")) == 3
    store.delete(ids[2])
    (pack,) = store._backend.entries("packs")
    assert 30_000 < pack.nbytes < 31_000
    for one in (store, another(store)):
        check(one, last)


def test_a_damaged_pack_is_not_compacted(store, monkeypatch):
    monkeypatch.setattr(garbage, "COMPACT_BYTES", 1000)
    kept, dropped = some(5000, 90_000)
    first, _ = save(store, [kept, dropped])
    save(store, [kept])
    monkeypatch.setattr(type(store._backend), "read_into", lambda *_: 3)
    before = {name for name in objects(store) if name.startswith("packs/")}
    store.delete(first)
    monkeypatch.undo()
    assert {name for name in objects(store) if name.startswith("packs/")} == before


def test_garbage_waits_for_writers(store):
    chunks = some(10_000)
    first, _ = save(store, chunks)
    snapshot_id = new_id()
    with store.writing() as writer:
        another(store).delete(first)
        assert another(store).collect_garbage() == 0
        assert writer.has(chunk_name(chunks[0]))
        writer.add(chunk_name(chunks[0]), memoryview(chunks[0]))
        writer.manifest(snapshot_id, document(snapshot_id, chunks))
    store.collect_garbage()
    check(another(store), snapshot_id)


def test_writers_wait_for_the_removal_of_garbage(store):
    chunks = some(10_000)
    first, _ = save(store, chunks)
    entered = threading.Event()
    done = []

    def late():
        entered.set()
        done.append(save(another(store), chunks)[0])

    with store._backend.collecting() as lease:
        assert lease is not None
        with store._backend.collecting() as second:
            assert second is None
        writer = threading.Thread(target=late)
        writer.start()
        entered.wait()
        writer.join(0.3)
        assert done == []
        store._backend.delete(f"manifests/{first}.json")
        garbage.collect(store, store._backend, lease)
    writer.join()
    check(another(store), done[0])


@pytest.mark.parametrize(
    "text", [b"{", b"[]", b'{"manifest": {"format": 3, "blobs": []}}', b"\xff"]
)
def test_an_unreadable_manifest_keeps_all_chunks(store, text):
    snapshot_id, _ = save(store, some(100))
    bad = new_id()
    put(store, f"manifests/{bad}.json", text)
    store._backend.delete(f"manifests/{snapshot_id}.json")
    before = objects(store)
    assert store.list() == []
    assert store.collect_garbage() == 0
    assert objects(store) == before
    if b"format" not in text:
        with pytest.raises(SnapshotDamagedError, match=bad):
            store.read(bad)
    store.delete(bad)
    assert objects(store) == {}


def test_manifests_of_format_1_do_not_keep_packs(store):
    old = {"format": 1, "blobs": [[{"hash": "0" * 64, "nbytes": 7}]], "variables": [],
           "name": "old", "created_s": 0, "kernel_id": "k", "notebook": None}  # fmt: skip
    snapshot_id, _ = save(store, some(100))
    put(store, f"manifests/{new_id()}.json", json.dumps({"manifest": old}).encode())
    assert [info.name for info in store.list()] == ["old", "one"]
    store.delete(snapshot_id)
    assert store._backend.entries("packs") == []


@pytest.mark.parametrize("url", ["memory", "s3", "redis"], indirect=True)
class TestMarkers:
    def test_markers_of_dead_ones_go_stale(self, store, monkeypatch):
        snapshot_id, _ = save(store, some(100))
        markers.WriterMarker(store._backend)
        assert store.collect_garbage() == 0
        store._backend.delete(f"manifests/{snapshot_id}.json")
        monkeypatch.setattr(markers, "WRITER_STALE_S", -1.0)
        assert store.collect_garbage() > 100
        assert store._backend.entries(markers.FOLDER) == []
        markers.CollectorMarker(store._backend)
        monkeypatch.setattr(markers, "COLLECTOR_STALE_S", -1.0)
        save(store, some(100))
        assert store._backend.entries(markers.FOLDER) == []

    @pytest.mark.parametrize("removed", [False, True])
    def test_a_writer_that_slept_looks_whether_its_chunks_are_there(
        self, store, monkeypatch, removed
    ):
        chunks = some(5000, 6000)
        first, _ = save(store, chunks[:1])
        snapshot_id = new_id()
        with store.writing() as writer:
            for chunk in chunks:
                writer.add(chunk_name(chunk), memoryview(chunk))
            with monkeypatch.context() as patch:
                patch.setattr(markers, "WRITER_STALE_S", -1.0)
                if removed:
                    another(store).delete(first)
            with monkeypatch.context() as patch:
                patch.setattr(markers.Marker, "age_s", lambda self: 1e6)
                if removed:
                    with pytest.raises(SnapshotError, match="save again"):
                        writer.manifest(snapshot_id, document(snapshot_id, chunks))
                else:
                    writer.manifest(snapshot_id, document(snapshot_id, chunks))
        if removed:
            assert store.list() == []
        else:
            check(another(store), snapshot_id)

    def test_a_collector_that_slept_removes_nothing_more(self, store, monkeypatch):
        save(store, some(100))
        with store._backend.collecting() as lease:
            for entry in store._backend.entries("manifests"):
                store._backend.delete(entry.name)
            monkeypatch.setattr(markers.Marker, "age_s", lambda self: 1e6)
            assert garbage.collect(store, store._backend, lease) == 0
        assert len(store._backend.entries("packs")) == 1
