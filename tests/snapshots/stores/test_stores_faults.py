"""Stores that refuse, are full, or go away half way."""

from __future__ import annotations

import builtins
import errno
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from store_saves import another, check, document, new_id, objects, save, some
from store_servers import RedisServer, Wire, free_port

from jupyter_gpu_predict.errors import (
    BadInputError,
    SnapshotError,
    StorageAccessError,
    StorageFullError,
    StorageUnavailableError,
)
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.stores import open_store

HERE = Path(__file__).resolve().parent


def every_call(store):
    """Return what a user may ask of a store, to be called with `pytest.raises`."""
    return (
        store.list,
        lambda: store.find("one"),
        lambda: store.read(new_id()),
        lambda: store.delete(new_id()),
        lambda: save(store, some(100)),
        lambda: store.read_chunk(chunk_name(b"x"), memoryview(bytearray(1))),
    )


class TestRedis:
    @pytest.mark.parametrize("user", ["nobody:secret-word", "reader:good"])
    def test_refused(self, redis_server, user):
        redis_server.add_user("reader", "good", ["+hello"])
        store = open_store(f"redis://{user}@{redis_server.address}/0?prefix=secret-word")
        for call in every_call(store):
            with pytest.raises(
                StorageAccessError, match=rf"redis://{redis_server.address}/0 "
            ) as e:
                call()
            assert "secret-word" not in str(e.value)
        assert "secret-word" not in repr(store)

    def test_nobody_there(self):
        for call in every_call(open_store(f"redis://127.0.0.1:{free_port()}/0")):
            with pytest.raises(StorageUnavailableError, match="try again"):
                call()

    def test_full(self, redis_server):
        store = open_store(f"redis://{redis_server.address}/0?prefix={secrets.token_hex(8)}")
        former, _ = save(store, some(50_000))
        before = objects(store)
        with redis_server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", client.info()["used_memory"] + (3 << 20))
            try:
                with pytest.raises(StorageFullError, match="no room to write"):
                    save(store, some(*[1 << 20] * 12))
            finally:
                client.config_set("maxmemory", 0)
            assert client.smembers(store._backend.key("uploads")) == set()
        assert objects(store) == before
        check(another(store), former)
        save(store, some(2 << 20))

    def test_killed_half_way(self, tmp_path):
        server = RedisServer(tmp_path)
        try:
            url = f"redis://{server.address}/1"
            store = open_store(url)
            chunks = some(300_000, 1000)
            former, _ = save(store, chunks)
            before = objects(store)
            with pytest.raises(StorageUnavailableError, match="Earlier snapshots are whole"):
                kill_half_way(store, server)
            server.start()
            assert [info.snapshot_id for info in open_store(url).list()] == [former]
            check(open_store(url), former)
            save(store, some(5000))
            assert before.keys() < objects(store).keys()
        finally:
            server.kill()

    def test_what_a_dead_process_left_is_swept(self, redis_server):
        store = open_store(f"redis://{redis_server.address}/0?prefix={secrets.token_hex(8)}")
        save(store, some(10))
        store._backend.create("packs/x.pack").write(memoryview(bytes(5000)))
        assert store.collect_garbage() == 5000
        with redis_server.client() as client:
            assert client.smembers(store._backend.key("uploads")) == set()

    @pytest.mark.parametrize("url", ["redis://host:notaport/0", "redis://h/0?db=x"])
    def test_malformed(self, url):
        with pytest.raises(BadInputError, match="redis://"):
            open_store(url)


def kill_half_way(store, server):
    chunks = some(100_000, 200_000)
    with store.writing() as writer:
        writer.add(chunk_name(chunks[0]), memoryview(chunks[0]))
        server.kill()
        writer.add(chunk_name(chunks[1]), memoryview(chunks[1]))
        writer.manifest(new_id(), document(new_id(), chunks))


class TestS3:
    def test_wrong_credentials(self, s3, s3_server):
        store = open_store(s3)
        former, _ = save(store, some(100))
        with s3_server.refusing():
            for call in every_call(another(store)):
                with pytest.raises(StorageAccessError, match=f"{s3} does not let us"):
                    call()
        check(open_store(s3), former)

    def test_no_credentials(self, s3, monkeypatch, tmp_path):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StorageAccessError, match="credentials"):
            save(open_store(s3), some(100))

    def test_missing_bucket(self, s3):
        for call in every_call(open_store("s3://no-such-bucket-here/x")):
            with pytest.raises(StorageAccessError, match="no such bucket"):
                call()

    def test_nobody_there(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StorageUnavailableError, match="try again"):
            open_store(s3).list()

    def test_cut_half_way(self, s3, s3_server, monkeypatch):
        direct = open_store(s3)
        chunks = some(300_000, 1000)
        former, _ = save(direct, chunks)
        before = objects(direct)
        wire = Wire(s3_server.port)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
        wired = open_store(s3)
        check(wired, former)
        wire.cut_after = wire.passed + (12 << 20)
        with pytest.raises(StorageUnavailableError, match="Earlier snapshots are whole"):
            save(wired, some(*[4 << 20] * 6))
        assert wire.passed > wire.cut_after
        assert objects(direct) == before
        check(another(direct), former)
        save(direct, some(500))


class TestLocal:
    def test_really_full_disk(self, tmp_path):
        if os.geteuid() != 0:
            pytest.skip("mounting a small file system needs root")
        target = tmp_path / "small"
        target.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(target)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let a test mount a file system")
        try:
            store = open_store(target)
            former, _ = save(store, some(100_000))
            before = objects(store)
            with pytest.raises(StorageFullError, match=rf"no room to write \d+ bytes at {target}"):
                save(store, some(*[1 << 20] * 6))
            assert objects(store) == before
            assert not list(target.rglob("packs/.*"))
            check(another(store), former)
            save(store, some(1 << 20))
        finally:
            subprocess.run(["umount", str(target)], check=True)

    def test_file_size_limit(self, tmp_path):
        """A limit that the system sets, in a process of its own because it cannot be raised."""
        code = """
import resource, sys
from store_saves import *
from jupyter_gpu_predict.errors import StorageFullError
from jupyter_gpu_predict.snapshots.stores import open_store
store = open_store(sys.argv[1])
former, _ = save(store, some(100_000))
before = objects(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
try:
    save(store, some(*[1 << 20] * 6))
except StorageFullError as error:
    assert objects(store) == before
    check(another(store), former)
    print("full")
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "s")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "full\n", done.stderr

    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (errno.ENOSPC, StorageFullError),
            (errno.EDQUOT, StorageFullError),
            (errno.EIO, StorageUnavailableError),
            (errno.ESTALE, StorageUnavailableError),
        ],
    )
    @pytest.mark.parametrize("nth", [1, 2, 3])
    def test_a_disk_that_fails_when_it_is_asked_to_keep(
        self, tmp_path, monkeypatch, code, kind, nth
    ):
        """A quota, a lost network disk or a broken one may be told only then."""
        store = open_store(tmp_path / "s")
        former, _ = save(store, some(1000))
        before = objects(store)
        calls = []

        def fails(fd, real=os.fsync):
            calls.append(fd)
            if len(calls) == nth:
                raise OSError(code, os.strerror(code))
            real(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(kind, match=str(tmp_path)):
                save(store, some(2000))
        assert objects(store) == before
        assert not list(store.path.glob("*/.*"))
        check(another(store), former)

    @pytest.mark.parametrize("where", ["file/below", "/proc/nothing"])
    def test_no_place_for_a_folder(self, tmp_path, where):
        (tmp_path / "file").write_text("")
        with pytest.raises(SnapshotError, match=where):
            save(open_store(tmp_path / where), some(10))

    def test_read_only(self, tmp_path):
        """Root is let in everywhere, but not into a file system that is read-only."""
        if os.geteuid() != 0:
            (tmp_path / "s").mkdir(mode=0o500)
            with pytest.raises(StorageAccessError):
                save(open_store(tmp_path / "s"), some(10))
            return
        store = open_store(tmp_path)
        former, _ = save(store, some(1000))
        bind = ["mount", "--bind", str(tmp_path), str(tmp_path)]
        if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
            pytest.skip("this machine does not let a test mount a file system")
        try:
            remount = ["mount", "-o", "remount,ro,bind", str(tmp_path)]
            subprocess.run(remount, check=True)
            with pytest.raises(StorageAccessError, match=str(tmp_path)):
                save(store, some(10))
            check(another(store), former)
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("url", ["", "nonsense://x", "file://elsewhere/x"])
def test_no_such_store(url):
    with pytest.raises(BadInputError):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "missing"), [("redis://x/0", "redis"), ("s3://x/y", "fsspec"), ("s3://x/y", "s3fs")]
)
def test_a_missing_package_is_named(url, missing, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [n for n in sys.modules if n.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "s3fs":
        from fsspec.registry import _registry

        monkeypatch.delitem(_registry, "s3", raising=False)
    with pytest.raises(BadInputError, match=r"pip install 'jupyter-gpu-predict\[remote\]'"):
        open_store(url)


def test_opening_by_path_needs_neither_package():
    code = """
import sys
from jupyter_gpu_predict.snapshots.stores import open_store
open_store("/tmp/x").url, open_store("file:///tmp/x%20y").path
assert str(open_store("file:///tmp/x%20y").path) == "/tmp/x y"
assert not {"fsspec", "redis", "s3fs", "numpy"} & sys.modules.keys()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
