"""Removal of what no manifest names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import packs
from .backend import Backend, Entry, Lease, each, uploading
from .catalogue import ID, chunk_names

if TYPE_CHECKING:
    from .store import SnapshotStore

COMPACT_BYTES = 16 << 20
"""Packs of which less than half is live are copied when that wins more than this."""


def collect(store: SnapshotStore, backend: Backend, lease: Lease) -> int:
    """Remove garbage while writers are held off, and return the bytes freed."""
    manifests = backend.entries("manifests")
    try:
        live = set().union(*each(backend, lambda entry: _named(backend, entry), manifests))
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    ids = {entry.name.rpartition("/")[2].removesuffix(".json") for entry in manifests}
    freed = backend.sweep()
    for entry in backend.entries("notes"):
        snapshot_id = entry.name.rpartition("/")[2].partition(".")[0]
        if snapshot_id not in ids and ID.match(snapshot_id) and lease.renew():
            backend.delete(entry.name)
            freed += entry.nbytes
    where = store.locate()
    whole = live <= where.keys()
    sparse: dict[str, list[str]] = {}
    dead = 0
    for entry in backend.entries(packs.FOLDER):
        index = store.indexes().get(entry.name)
        if index is None:
            # A damaged pack may hold what a manifest names and no other pack has.
            if whole and entry.name in store.pack_names() and lease.renew():
                backend.delete(entry.name)
                freed += entry.nbytes
            continue
        needed = [name for name in index if name in live and where[name][0] == entry.name]
        used = sum(index[name][1] for name in needed)
        if not needed and lease.renew():
            backend.delete(entry.name)
            freed += entry.nbytes
        elif used < entry.nbytes / 2:
            sparse[entry.name] = needed
            dead += entry.nbytes - used
    if dead > COMPACT_BYTES:
        freed += _compact(store, backend, lease, sparse)
    store.locate()
    return freed


def _named(backend: Backend, entry: Entry) -> set[str]:
    try:
        return chunk_names(json.loads(backend.read(entry.name)))
    except FileNotFoundError:
        return set()


def _compact(
    store: SnapshotStore, backend: Backend, lease: Lease, sparse: dict[str, list[str]]
) -> int:
    """Copy the live chunks of sparse packs into one new pack, and return what that frees."""
    indexes = store.indexes()
    new = packs.new_name()
    placed: dict[str, tuple[int, int]] = {}
    copied: list[str] = []
    end = 0
    with uploading(backend.create(new)) as upload:
        for old, names in sparse.items():
            for name in names:
                offset, nbytes = indexes[old][name]
                data = memoryview(bytearray(nbytes))
                if end + nbytes > backend.pack_limit or not lease.renew():
                    break
                if backend.read_into(old, offset, data) != nbytes:
                    break  # it is damaged; whoever restores from it is told
                upload.write(data)
                placed[name] = (end, nbytes)
                end += nbytes
            else:
                copied.append(old)
        if not copied:
            upload.abort()
            return 0
        upload.write(memoryview(packs.footer(placed)))
        upload.finish()
        upload.publish()
    backend.settle()
    store.learn(new, placed)
    freed = 0
    for old in copied:
        if lease.renew():
            backend.delete(old)
            freed += sum(nbytes for name, (_, nbytes) in indexes[old].items() if name not in placed)
    return freed
