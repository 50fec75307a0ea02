"""What only a local store promises: order of its steps, rights, and survival of `kill -9`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_saves import another, check, document, new_id, objects, save, some

from jupyter_gpu_predict.errors import BadInputError
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.stores import local, open_store, validate_name

HERE = Path(__file__).resolve().parent


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", "a..b", ".hidden", "a\0b", "a\nb", "a\x7fb", "x" * 129, "x" * 300, "a\\b"],
)
def test_bad_names_are_refused(name):
    with pytest.raises(BadInputError):
        validate_name(name)


@settings(max_examples=50)
@given(st.text(max_size=140))
def test_accepted_names_are_plain(name):
    try:
        validate_name(name)
    except BadInputError:
        return
    assert 0 < len(name) <= 128
    assert "/" not in name
    assert ".." not in name
    assert not name.startswith(".")
    assert name.isprintable()


def test_only_the_user_can_read(store):
    former = os.umask(0)
    try:
        snapshot_id, _ = save(store, some(1000))
        store.write_note(snapshot_id, "verified", {"verified": True})
    finally:
        os.umask(former)
    for path in [store.path, *store.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_looking_makes_no_folder(store):
    assert store.list() == []
    assert store.collect_garbage() == 0
    assert not store.path.exists()


class TestOrder:
    @pytest.fixture
    def steps(self, store, monkeypatch):
        """Record what is made durable and renamed, by kind of file."""
        save(store, some(10))
        steps = []

        def kind(path):
            path = Path(path)
            if path.is_dir():
                return path.name
            return path.parent.name.removesuffix("s") if path.suffix else None

        def fsync(fd, real=os.fsync):
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            steps.append(("sync", path.name if path.is_dir() else f"file of {path.parent.name}"))
            real(fd)

        def rename(source, target, real=os.rename):
            steps.append(("rename", kind(target)))
            real(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "rename", rename)
        return steps

    def test_of_a_save(self, store, steps):
        save(store, some(1000, 2000, 3000))
        assert steps == [
            ("sync", "file of packs"),
            ("rename", "pack"),
            ("sync", "file of manifests"),
            ("sync", "packs"),
            ("rename", "manifest"),
            ("sync", "manifests"),
        ]

    def test_of_a_save_without_change(self, store, steps):
        chunks = some(1000)
        save(store, chunks)
        steps.clear()
        save(store, chunks)
        assert steps == [
            ("sync", "file of manifests"),
            ("rename", "manifest"),
            ("sync", "manifests"),
        ]


def test_what_is_written_goes_to_the_disk_at_once(store, monkeypatch):
    if local._start_writeback is None:
        pytest.skip("this system has no sync_file_range")
    ranges = []
    real = local._start_writeback

    def start(fd, offset, nbytes, flags):
        ranges.append((offset, nbytes))
        result = real(fd, offset, nbytes, flags)
        assert result == 0
        return result

    monkeypatch.setattr(local, "_start_writeback", start)
    monkeypatch.setattr(local, "_WRITEBACK_BYTES", 8 << 20)
    save(store, some(*[4 << 20] * 5))
    assert ranges == [(0, 8 << 20), (8 << 20, 8 << 20)]


def test_a_forked_child_goes_on_with_a_writer(store):
    chunks = some(200_000, 300_000)
    snapshot_id = new_id()
    with store.writing() as writer:
        writer.add(chunk_name(chunks[0]), memoryview(chunks[0]))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                writer.add(chunk_name(chunks[1]), memoryview(chunks[1]))
                writer.manifest(snapshot_id, document(snapshot_id, chunks))
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    check(another(store), snapshot_id)
    assert len(objects(store)) == 2


def test_the_lock_lasts_as_long_as_a_child_that_writes(store):
    """The parent may die before it: what the child relies on must not be collected."""
    chunks = some(1000)
    former, _ = save(store, chunks)
    read, write = os.pipe()
    with store.writing():
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    os.close(read)
    another(store).delete(former)
    assert another(store).collect_garbage() == 0
    assert len(objects(store)) == 1
    os.close(write)
    os.waitpid(child, 0)
    assert another(store).collect_garbage() > 1000


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kill_at_any_moment_leaves_whole_snapshots(store):
    rounds = int(os.environ.get("JUPYTER_GPU_TEST_KILLS", "200"))
    assert run("store_killed.py", store.path, rounds).startswith("kills in the midst: ")


@pytest.mark.parametrize("url", ["local", "s3", "redis"], indirect=True)
def test_writers_deduplicate_against_what_others_collect(url):
    processes, count = (2, 6) if url.startswith("s3") else (3, 30)
    out = run("store_together.py", url, processes, count)
    assert out.endswith("whole\n")


@pytest.mark.parametrize("url", ["local", "s3", "redis"], indirect=True)
def test_a_forked_child_saves_for_itself(url):
    assert run("store_forked.py", url) == "4 snapshots\n"
