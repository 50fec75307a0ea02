from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys

import pytest

from jupyter_gpu_predict.errors import SnapshotError, SnapshotRefusedError
from jupyter_gpu_predict.snapshots import load_or_create_key
from jupyter_gpu_predict.snapshots.chunks import chunk_name
from jupyter_gpu_predict.snapshots.signing import sign, verify


def _manifest(folder, snapshot_id):
    return folder.path / "manifests" / f"{snapshot_id}.json"


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def _replace_stream(folder, snapshot_id, payload):
    """Put `payload` in place of the first stream, with hashes that fit it."""
    document = folder.read(snapshot_id)
    manifest = document["manifest"]
    name = chunk_name(payload)
    with folder.writing() as writer:
        writer.add(name, memoryview(payload))
        manifest["blobs"].append([[name, len(payload)]])
        group = manifest["groups"][0]
        group.update(blob=len(manifest["blobs"]) - 1, offset=0, nbytes=len(payload))
        writer.manifest(snapshot_id, document)
    return document


def test_altered_stream_is_never_unpickled(folder, save, load, tmp_path):
    trap = tmp_path / "sprung"
    _, report = save("x = 1")
    payload = pickle.dumps(None) + pickle.dumps(Evil(str(trap)))
    document = _replace_stream(folder, report.snapshot_id, payload)
    file = _manifest(folder, report.snapshot_id)
    file.write_text(json.dumps(document))
    with pytest.raises(SnapshotRefusedError, match="altered"):
        load(report.snapshot_id)
    file.write_text(json.dumps({"manifest": document["manifest"]}))
    with pytest.raises(SnapshotRefusedError, match="not signed"):
        load(report.snapshot_id)
    file.write_text(json.dumps(sign(document["manifest"], b"x" * 32)))
    with pytest.raises(SnapshotRefusedError, match="another key"):
        load(report.snapshot_id)
    assert not trap.exists()


def test_the_trap_works_when_signed(folder, save, load, tmp_path):
    """Without this the test above could pass because the payload is harmless."""
    trap = tmp_path / "sprung"
    _, report = save("x = 1")
    payload = pickle.dumps(None) + pickle.dumps(Evil(str(trap)))
    document = _replace_stream(folder, report.snapshot_id, payload)
    signed = sign(document["manifest"], bytes(range(32)))
    _manifest(folder, report.snapshot_id).write_text(json.dumps(signed))
    load(report.snapshot_id)
    assert trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": "3.1"}, "Python 3.1"),
        ({"format": 99}, "format 99"),
        ({"id": "20240101T000000-000000000000"}, "holds the manifest of"),
    ],
)
def test_other_python_format_or_id(folder, save, load, change, message):
    _, report = save("x = 1")
    manifest = folder.read(report.snapshot_id)["manifest"] | change
    _manifest(folder, report.snapshot_id).write_text(json.dumps(sign(manifest, bytes(range(32)))))
    with pytest.raises(SnapshotRefusedError, match=message):
        load(report.snapshot_id)


@pytest.mark.parametrize("document", [{}, {"manifest": 3}, {"manifest": {}, "signature": 5}])
def test_malformed_documents(document):
    with pytest.raises(SnapshotRefusedError):
        verify(document, b"k" * 32, "one")


def test_key_is_private_and_stays(tmp_path):
    path = tmp_path / "deep" / "key"
    key = load_or_create_key(path)
    assert len(key) == 32
    assert load_or_create_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_key_others_can_read_is_refused(tmp_path):
    path = tmp_path / "key"
    load_or_create_key(path)
    path.chmod(0o644)
    with pytest.raises(SnapshotError, match="chmod 600"):
        load_or_create_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(SnapshotError, match="no snapshot key"):
        load_or_create_key(path)


def test_processes_that_race_get_one_key(tmp_path):
    code = (
        "import sys; from jupyter_gpu_predict.snapshots import load_or_create_key as f;"
        "sys.stdin.read(1); print(f(sys.argv[1]).hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "key")]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.write("g")
        racer.stdin.flush()
    assert len({racer.communicate()[0] for racer in racers}) == 1
