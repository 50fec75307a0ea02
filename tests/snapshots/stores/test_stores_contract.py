"""What every store must do, whatever keeps it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from store_saves import another, check, document, new_id, objects, put, save, some

from jupyter_gpu_predict.errors import (
    BadInputError,
    NotFoundError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotIncompleteError,
)
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.stores import open_store, packs


def test_what_was_saved_is_read_by_another(store, url):
    chunks = some(1, 70_000, 4 << 20, 5)
    snapshot_id, nbytes = save(store, chunks, name="mine", labels={"reason": "idle"})
    assert nbytes == sum(objects(store).values())
    other = open_store(url)
    (info,) = other.list()
    assert (info.snapshot_id, info.name, info.nbytes) == (
        snapshot_id,
        "mine",
        sum(map(len, chunks)),
    )
    assert (info.labels, info.verified) == ({"reason": "idle"}, None)
    assert other.read(snapshot_id) == document(
        snapshot_id, chunks, name="mine", labels={"reason": "idle"}
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: check(other, snapshot_id), range(4)))


def test_a_buffer_may_be_reused_after_add(store):
    buffer = bytearray(1 << 20)
    chunks = some(*[1 << 20] * 3)
    snapshot_id = new_id()
    with store.writing() as writer:
        for chunk in chunks:
            buffer[:] = chunk
            writer.add(chunk_name(chunk), memoryview(buffer))
        buffer[:] = bytes(1 << 20)
        writer.manifest(snapshot_id, document(snapshot_id, chunks))
    check(store, snapshot_id)


def test_a_save_without_change_costs_the_manifest(store):
    chunks = some(100_000, 50_000)
    save(store, chunks)
    before = objects(store)
    for reader in (store, another(store)):
        snapshot_id, nbytes = save(reader, chunks)
        new = objects(store).keys() - before.keys()
        assert new == {f"manifests/{snapshot_id}.json"}
        assert nbytes == objects(store)[f"manifests/{snapshot_id}.json"]
        check(store, snapshot_id)
        before = objects(store)


def test_chunks_that_are_not_trusted_are_written_again(store):
    chunks = some(1000)
    first, _ = save(store, chunks)
    (pack,) = store._backend.entries("packs")
    put(store, pack.name, b"\0" * 1000 + store._backend.read(pack.name, 1000))
    with pytest.raises(AssertionError):
        check(another(store), first)
    snapshot_id = new_id()
    with store.writing(reuse=False) as writer:
        writer.add(chunk_name(chunks[0]), memoryview(chunks[0]))
        writer.manifest(snapshot_id, document(snapshot_id, chunks))
    for reader in (store, another(store)):
        check(reader, first)
    store.collect_garbage()
    check(another(store), first)
    assert len(store._backend.entries("packs")) == 1


def test_nothing_is_seen_before_the_manifest(store):
    former, _ = save(store, some(100))
    before = objects(store)
    chunk = some(200_000)[0]
    other = another(store)
    with store.writing() as writer:
        writer.add(chunk_name(chunk), memoryview(chunk))
        assert writer.has(chunk_name(chunk))
        assert [info.snapshot_id for info in other.list()] == [former]
        with pytest.raises(SnapshotIncompleteError, match="lacks chunk"):
            other.read_chunk(chunk_name(chunk), memoryview(bytearray(len(chunk))))
    assert objects(store) == before


def test_a_save_that_breaks_off_leaves_nothing(store):
    save(store, some(100))
    before = objects(store)
    chunk = some(9 << 20)[0]

    def break_off(*, published):
        with store.writing() as writer:
            writer.add(chunk_name(chunk), memoryview(chunk))
            if published:
                writer._close_pack()
            raise KeyError

    for published in (False, True):
        with pytest.raises(KeyError):
            break_off(published=published)
        assert objects(store) == before
    assert store.collect_garbage() == 0


def test_names_and_ids_are_found(store):
    ids = [
        save(store, some(10), new_id(n), name=name, created_s=n, kernel_id=kernel)[0]
        for n, (name, kernel) in enumerate([("a", "1"), ("a", "2"), ("b", "2")])
    ]
    assert [info.snapshot_id for info in store.list()] == ids
    assert store.find("a") == ids[1]
    assert store.find("a", kernel_id="1") == ids[0]
    assert store.find("b", kernel_id="1") == ids[2]
    assert store.find(ids[0]) == ids[0]
    for call in (store.find, store.read, store.delete):
        with pytest.raises(NotFoundError):
            call(new_id())
    with pytest.raises(NotFoundError, match="absent"):
        store.find("absent")
    with pytest.raises(BadInputError):
        store.find("../a")


def test_an_empty_place_is_an_empty_store(store):
    assert store.list() == []
    assert store.collect_garbage() == 0
    with pytest.raises(SnapshotIncompleteError):
        store.read_chunk(chunk_name(b"x"), memoryview(bytearray(1)))


def test_notes_come_and_go_with_their_snapshot(store):
    snapshot_id, _ = save(store, some(10))
    assert store.read_note(snapshot_id, "verified") is None
    for verified in (False, True):
        store.write_note(snapshot_id, "verified", {"verified": verified, "more": ["é"]})
        for reader in (store, another(store)):
            assert reader.read_note(snapshot_id, "verified") == {
                "verified": verified,
                "more": ["é"],
            }
            assert [info.verified for info in reader.list()] == [verified]
    with pytest.raises(BadInputError):
        store.write_note(snapshot_id, "../up", {})
    with pytest.raises(NotFoundError):
        store.write_note(new_id(), "verified", {})
    store.delete(snapshot_id)
    assert objects(store) == {}


def test_a_pack_is_not_longer_than_the_store_likes(store, monkeypatch):
    monkeypatch.setattr(type(store._backend), "pack_limit", 100_000)
    chunks = some(60_000, 50_000, 30_000, 150_000, 10)
    snapshot_id, _ = save(store, chunks)
    assert len(store._backend.entries("packs")) == 4
    check(another(store), snapshot_id)


@pytest.mark.parametrize("change", ["gone", "short", "index"])
def test_damaged_packs_are_named(store, change):
    damage(store, change)


@pytest.mark.parametrize("url", ["local"], indirect=True)
@pytest.mark.parametrize("change", ["mark", "empty", "outside"])
def test_oddly_damaged_packs_are_named(store, change):
    damage(store, change)


def damage(store, change):
    chunks = some(3000, 2000)
    snapshot_id, _ = save(store, chunks)
    healthy, _ = save(store, some(500))
    name = next(e.name for e in store._backend.entries("packs") if e.nbytes > 5000)
    if change == "gone":
        store._backend.delete(name)
    else:
        whole = store._backend.read(name)
        outside = {chunk_name(chunks[0]): (4000, 1 << 40)}
        replaced = {
            "short": whole[:2500],
            "index": whole[:5010] + b"?" + whole[5011:],
            "mark": whole[:-1] + b"?",
            "empty": b"x",
            "outside": whole[:5000] + packs.footer(outside),
        }
        put(store, name, replaced[change])
    reader = another(store)
    expected = SnapshotIncompleteError if change == "gone" else SnapshotDamagedError
    with pytest.raises(expected, match=r"damaged|lacks"):
        check(reader, snapshot_id)
    check(reader, healthy)
    # What is lost is written anew by the next save, and nothing is removed before that.
    reader.collect_garbage()
    if change != "gone":
        assert name in objects(reader)
    again, _ = save(reader, chunks)
    reader.collect_garbage()
    check(another(store), again)
    check(another(store), snapshot_id)
    assert name not in objects(reader)


def test_a_chunk_of_another_length_is_damaged(store):
    chunks = some(3000)
    save(store, chunks)
    for size in (2999, 3001):
        with pytest.raises(SnapshotDamagedError, match=str(size)):
            another(store).read_chunk(chunk_name(chunks[0]), memoryview(bytearray(size)))


def test_a_writer_that_failed_writes_no_manifest(store, monkeypatch):
    chunk = some(100)[0]
    with store.writing() as writer:
        create = monkeypatch.setattr(
            store._backend, "create", lambda name: (_ for _ in ()).throw(SnapshotError("no"))
        )
        with pytest.raises(SnapshotError, match="no"):
            writer.add(chunk_name(chunk), memoryview(chunk))
        monkeypatch.undo()
        assert create is None
        with pytest.raises(SnapshotError, match="has failed before"):
            writer.manifest(new_id(), {})
    assert [name for name in objects(store) if "manifests" in name] == []
