"""Saves without an engine: chunks of random bytes and documents that name them."""

from __future__ import annotations

import os
import secrets

from jupyter_gpu_predict.snapshots.chunks import chunk_matches, chunk_name
from jupyter_gpu_predict.snapshots.stores import SnapshotStore


def new_id(second=0):
    return f"20240101T{second:06d}-{secrets.token_hex(6)}"


def document(snapshot_id, chunks, *, name="one", created_s=1.0, kernel_id="k", **more):
    blobs = [[[chunk_name(chunk), len(chunk)]] for chunk in chunks]
    manifest = {
        "format": 2,
        "id": snapshot_id,
        "name": name,
        "created_s": created_s,
        "kernel_id": kernel_id,
        "notebook": None,
        "blobs": blobs,
        "variables": [],
        **more,
    }
    return {"manifest": manifest, "signature": ""}


def save(store, chunks, snapshot_id=None, **more):
    """Save chunks as a snapshot and return its id and how many bytes were written."""
    snapshot_id = snapshot_id or new_id()
    with store.writing() as writer:
        for chunk in chunks:
            writer.add(chunk_name(chunk), memoryview(chunk))
        writer.manifest(snapshot_id, document(snapshot_id, chunks, **more))
    return snapshot_id, writer.bytes_written


def check(store, snapshot_id):
    """Read every chunk of a snapshot and compare it with its name."""
    for blob in store.read(snapshot_id)["manifest"]["blobs"]:
        for name, nbytes in blob:
            data = bytearray(nbytes)
            store.read_chunk(name, memoryview(data))
            assert chunk_matches(name, data), name


def another(store):
    """Return the same store as somebody else sees it, who has read nothing of it yet."""
    return SnapshotStore(store._backend)


def some(*sizes):
    return [os.urandom(size) for size in sizes]


def objects(store):
    """Return the name and size of all that a store keeps but locks, by folder."""
    found = {}
    for folder in ("packs", "manifests", "notes"):
        for entry in store._backend.entries(folder):
            found[entry.name] = entry.nbytes
    return found


def put(store, name, data):
    """Put an object past the store, in the place of one that is there."""
    store._backend.put(name, data)
