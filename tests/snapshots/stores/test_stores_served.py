"""A Jupyter server and its store: in S3 or in Redis, and cleared of what broke off."""

from __future__ import annotations

import asyncio
import secrets
import threading
from types import SimpleNamespace

import pytest
from live_server import SERVER_OPTIONS, TestServer, event_loop, running
from store_saves import check, objects, save, some

from jupyter_gpu_predict.demo.client import API
from jupyter_gpu_predict.errors import StorageUnavailableError
from jupyter_gpu_predict.server import snapshots
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.stores import open_store


@pytest.fixture(params=["s3", "redis"])
def kind(request):
    return request.param


@pytest.fixture
def place(kind, request):
    """Return the URL of the store, and what keeps everybody out of it."""
    if kind == "s3":
        return request.getfixturevalue("s3"), request.getfixturevalue("s3_server").refusing
    server = request.getfixturevalue("redis_server")
    server.add_user("keeper", "secret-word")
    url = f"redis://keeper:secret-word@{server.address}/0?prefix={secrets.token_hex(8)}"
    return url, lambda: server.refusing("keeper", "secret-word")


async def say(notebook, code):
    execution = await notebook.run(code)
    assert execution.status == "ok", execution.text
    return execution.text


def test_a_session_is_saved_to_and_restored_from(place, tmp_path):
    url, refusing = place
    options = {**SERVER_OPTIONS, "GpuPredict.snapshot_store": url}
    with event_loop() as run, running(TestServer(tmp_path, options=options), run) as server:
        run(session(server, url, refusing))


async def session(server, url, refusing):
    store = open_store(url)
    notebook = await server.opened("kept.ipynb", "big = bytearray(b'abc' * 1_000_000); same = big")
    saved = await server.do(notebook, "snapshot", {"name": "mine"})
    assert saved["state"] == "done", saved
    kept = objects(store)
    assert sum(kept.values()) > 3_000_000
    (listed,) = await server.get(f"{API}/snapshots")
    assert (listed["name"], listed["kernel_id"]) == ("mine", notebook.kernel_id)

    with refusing():
        await say(notebook, "big[:3] = b'xyz'")
        failed = await server.do(notebook, "snapshot", {"name": "other"})
        assert (failed["state"], failed["code"]) == ("failed", "storage_access")
        refusals = [failed["error"], (await notebook.run("%gpu snapshot other")).text]
        for method, path, body in (
            ("GET", f"{API}/snapshots", None),
            ("DELETE", f"{API}/snapshots/{listed['id']}", None),
            ("POST", f"{API}/kernels/{notebook.kernel_id}/restore", {"snapshot": "mine"}),
        ):
            status, model = await server.request(method, path, body)
            assert (status, model["reason"]) == (502, "storage_access")
            refusals.append(model["message"])
        for text in refusals:
            assert f"{store.shown} does not let us" in text
            assert "credentials" in text
            assert "secret-word" not in text
        assert await say(notebook, "bytes(big[:3]), same is big") == "(b'xyz', True)"
    assert objects(store) == kept

    await server.post(f"api/kernels/{notebook.kernel_id}/restart")
    assert await say(notebook, "'big' in globals()") == "False"
    restored = await server.do(notebook, "restore", {"snapshot": "mine"})
    assert restored["state"] == "done", restored
    assert await say(notebook, "big == b'abc' * 1_000_000, same is big") == "(True, True)"
    await server.do(notebook, "snapshot", {"name": "mine"})
    for snapshot in await server.get(f"{API}/snapshots"):
        assert (await server.request("DELETE", f"{API}/snapshots/{snapshot['id']}"))[0] == 204
    assert objects(store) == {}
    await server.end(notebook)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Return what a server does with a store, which it clears without a pause."""
    monkeypatch.setattr(snapshots, "FIRST_COLLECTION_S", 0.0)
    monkeypatch.setattr(snapshots, "COLLECT_EVERY_S", 0.0)
    fleet = SimpleNamespace(loop=None, store=open_store(tmp_path / "store"))
    served = snapshots.Snapshots(fleet, verify=False)
    yield served
    asyncio.run(served.close())
    for thread in threading.enumerate():
        if thread.name == "snapshot garbage":
            thread.join(60)
            assert not thread.is_alive()


def test_what_a_killed_save_left_goes_though_nobody_deletes(served, monkeypatch):
    store = served.store
    whole, _ = save(store, some(1000))
    before = objects(store)
    chunk = some(5000)[0]
    with store.writing() as writer:
        writer.add(chunk_name(chunk), memoryview(chunk))
        writer._close_pack()
    store.path.joinpath("packs", ".unfinished").write_bytes(bytes(100))
    assert len(objects(store)) == len(before) + 1
    collected = threading.Event()

    def collect(real=store.collect_garbage):
        freed = real()
        collected.set()
        return freed

    monkeypatch.setattr(store, "collect_garbage", collect)
    served.start()
    assert collected.wait(60)
    assert objects(store) == before
    assert not list(store.path.glob("*/.*"))
    check(store, whole)


def test_that_it_cannot_be_cleared_is_said_once(served, monkeypatch, caplog):
    outcomes = [StorageUnavailableError("the place is away"), KeyError("a library's"), 0,
                StorageUnavailableError("away again"), 7]  # fmt: skip
    over = threading.Event()

    def collect():
        outcome = outcomes.pop(0) if outcomes else 0
        if not outcomes:
            over.set()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(served.store, "collect_garbage", collect)
    served.start()
    assert over.wait(60)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert ["the place is away" in said[0], "away again" in said[1], len(said)] == [True, True, 2]
    for text in said:
        assert str(served.store.path) in text
        assert "jupyter gpu snapshots gc" in text
