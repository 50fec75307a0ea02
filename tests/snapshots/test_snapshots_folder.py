from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.errors import BadInputError, NotFoundError, SnapshotError, StorageFullError
from jupyter_gpu_predict.snapshots import SnapshotFolder, validate_name
from jupyter_gpu_predict.snapshots.folder import chunk_hash


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "..", "a..b", ".hidden", "a\0b", "a\nb", "a\x7fb", "x" * 129, "x" * 300, "a\\b"],
)
def test_bad_names_are_refused(name):
    with pytest.raises(BadInputError):
        validate_name(name)


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


def test_bad_name_changes_nothing(folder, save):
    with pytest.raises(BadInputError):
        save("x = 1", name="../up")
    assert folder.list() == []
    assert list(folder.chunks.iterdir()) == []


def test_catalogue_and_names(folder, save):
    _, first = save("x = 1", name="mine")
    _, second = save("x = 2", name="mine")
    _, other = save("x = 3", name="other")
    assert {info.snapshot_id for info in folder.list()} == {
        first.snapshot_id,
        second.snapshot_id,
        other.snapshot_id,
    }
    assert folder.find("other") == other.snapshot_id
    assert folder.find(first.snapshot_id) == first.snapshot_id
    with pytest.raises(NotFoundError, match="absent"):
        folder.find("absent")
    with pytest.raises(NotFoundError):
        folder.read("20240101T000000-000000000000")


def test_only_the_user_can_read(folder, save):
    save("x = list(range(1000))")
    for path in [folder.path, *folder.path.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_equal_content_is_written_once(folder, save):
    code = "import numpy as np; a = np.arange(500_000.)"
    _, first = save(code)
    before = {p.name for p in folder.chunks.iterdir()}
    _, second = save(code)
    assert first.bytes_written > 4_000_000
    assert second.bytes_written < 100_000
    large = {p.name for p in folder.chunks.iterdir() if p.stat().st_size > 1_000_000}
    assert large <= before


def test_delete_keeps_what_others_need(folder, save, load):
    code = "import numpy as np; a = np.arange(500_000.)"
    _, first = save(code)
    _, second = save(code + "; b = np.ones(300_000)")
    size = sum(p.stat().st_size for p in folder.chunks.iterdir())
    folder.delete(second.snapshot_id)
    left = sum(p.stat().st_size for p in folder.chunks.iterdir())
    assert left < size - 2_000_000
    namespace, _ = load(first.snapshot_id)
    assert namespace["a"][-1] == 499_999
    with pytest.raises(NotFoundError):
        folder.delete(second.snapshot_id)


def test_garbage_waits_for_writers(folder):
    with folder.writing() as writer:
        writer.blob(memoryview(b"not yet in a manifest"))
        assert SnapshotFolder(folder.path).collect_garbage() == 0
    assert folder.collect_garbage() == len(b"not yet in a manifest")


def test_unreadable_manifest_keeps_chunks(folder, save):
    save("x = 1")
    (folder.manifests / "20240101T000000-000000000000.json").write_text("{")
    chunks = set(folder.chunks.iterdir())
    assert folder.collect_garbage() == 0
    assert set(folder.chunks.iterdir()) == chunks


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_the_former_snapshot(folder, save, load, monkeypatch, call, code):
    _, former = save("x = 'former'")
    before = sorted(p.name for p in folder.path.rglob("*"))
    real = getattr(os, call)
    calls = []

    def full(fd, *rest):
        calls.append(fd)
        if len(calls) >= 2:
            raise OSError(code, os.strerror(code))
        return real(fd, *rest)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageFullError, match=r"\d+ bytes at .*snapshots"):
        save("import os; big = os.urandom(3_000_000); more = os.urandom(2_000_000)")
    monkeypatch.undo()
    assert sorted(p.name for p in folder.path.rglob("*")) == before
    namespace, _ = load(former.snapshot_id)
    assert namespace["x"] == "former"


def test_really_full_disk(tmp_path, python):
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    target = tmp_path / "small"
    target.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(target)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let a test mount a file system")
    try:
        code = """
import json, os, sys
from jupyter_gpu_predict.errors import StorageFullError
from jupyter_gpu_predict.snapshots import SnapshotFolder, capture, restore
folder, key = SnapshotFolder(sys.argv[1]), b"k" * 32
keep = dict(name="a", now_s=1.0, kernel_id="k")
first = capture({"x": 1}, folder, key, **keep)
try:
    capture({"x": 2, "y": os.urandom(8_000_000)}, folder, key, **keep)
except StorageFullError as error:
    text = str(error)
space = {}
restore(folder, first.snapshot_id, key, space)
last = capture({"x": 3}, folder, key, **keep)
print(json.dumps([text, space["x"], len(folder.list())]))
"""
        text, value, count = python(code, target)
        assert "8000" in text or "bytes at" in text
        assert str(target) in text
        assert value == 1
        assert count == 2
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_unwritable_folder_says_which(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="file"):
        SnapshotFolder(tmp_path / "file" / "below")


_ENDLESS = """
import os, sys
from jupyter_gpu_predict.snapshots import SnapshotFolder, capture
folder, key = SnapshotFolder(sys.argv[1]), bytes(range(32))
print("ready", flush=True)
while True:
    space = {"x": os.urandom(20_000_000), "y": os.urandom(3_000_000)}
    capture(space, folder, key, name="many", now_s=1.7e9, kernel_id="k")
"""


@pytest.mark.parametrize("delay_s", [0.02, 0.09, 0.17])
def test_kill_in_the_middle_leaves_whole_snapshots(folder, save, load, delay_s):
    _, former = save("x = 'former'", name="former")
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(folder.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folder.collect_garbage()
    namespace, _ = load(former.snapshot_id)
    assert namespace["x"] == "former"
    for info in folder.list():
        load(info.snapshot_id)
    named = {
        chunk["hash"]
        for info in folder.list()
        for blob in folder.read(info.snapshot_id)["manifest"]["blobs"]
        for chunk in blob
    }
    assert {p.name for p in folder.chunks.iterdir()} == named
    assert not [p for p in folder.manifests.iterdir() if p.name.startswith(".")]


def test_chunks_are_named_by_their_bytes(folder, save):
    save("x = list(range(5000))")
    for chunk in folder.chunks.iterdir():
        assert chunk_hash(chunk.read_bytes()) == chunk.name
