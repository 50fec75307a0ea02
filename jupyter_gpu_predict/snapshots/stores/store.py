"""A store of snapshots: manifests and the content-named chunks that they share.

::

    packs/NAME.pack         chunks, see `packs`
    manifests/ID.json       signed manifest, written last: with it the snapshot exists
    notes/ID.KIND.json      remarks on a snapshot, which go away with it
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import (
    BadInputError,
    NotFoundError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotIncompleteError,
)
from . import garbage, packs
from .backend import Backend, Entry, each
from .catalogue import ID, KIND, SnapshotInfo, manifest_object, read_info, to_json, validate_name
from .writer import Writer

__all__ = ["SnapshotStore", "Writer"]

_Where = dict[str, tuple[str, int, int]]


class SnapshotStore:
    """Reads and writes snapshots in one place; safe with several processes at once.

    Made by `open_store`. Apart from what is said at the methods, all of them raise

    Raises
    ------
    StorageFullError
        If there is no room; what was there before is untouched.
    StorageAccessError
        If the place refuses this user.
    StorageUnavailableError
        If the place does not answer.
    SnapshotError
        If it cannot be read or written for another reason.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.url: str = backend.url
        """Opens the store again; it may hold a password, so show `shown` instead."""
        self.shown: str = backend.shown
        self.path: Path | None = backend.path
        self._locks = {os.getpid(): threading.Lock()}
        self._packs: dict[str, packs.Index] = {}
        self._damaged: dict[str, SnapshotDamagedError] = {}
        self._where: _Where | None = None
        self._infos: dict[str, SnapshotInfo] = {}
        self._verdicts: dict[str, tuple[Entry, bool | None]] = {}

    def __repr__(self) -> str:
        return f"<SnapshotStore {self.shown}>"

    def list(self) -> list[SnapshotInfo]:
        """Return the snapshots, oldest first; objects that are no manifests are left out."""
        entries = [e for e in self._backend.entries("manifests") if ID.match(_stem(e))]
        infos = {
            i.snapshot_id: i for i in each(self._backend, self._info, entries) if i is not None
        }
        self._infos = dict(infos)
        for snapshot_id, verified in self._read_verdicts().items():
            if snapshot_id in infos:
                infos[snapshot_id] = _with_verdict(infos[snapshot_id], verified)
        return sorted(infos.values(), key=lambda info: (info.created_s, info.snapshot_id))

    def find(self, name_or_id: str, *, kernel_id: str | None = None) -> str:
        """Return the id of a snapshot given by its id, or of the latest one of that name.

        Parameters
        ----------
        kernel_id
            Prefer the snapshots of this kernel to those of others.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        if ID.match(validate_name(name_or_id)) and self._exists(name_or_id):
            return name_or_id
        infos = self.list()
        named = [info for info in infos if info.name == name_or_id]
        own = [info for info in named if info.kernel_id == kernel_id]
        if not named:
            raise NotFoundError(f"there is no snapshot {name_or_id!r}; `%gpu snapshots` lists them")
        return (own or named)[-1].snapshot_id

    def read(self, snapshot_id: str) -> dict[str, Any]:
        """Return the signed document of a snapshot, not yet verified.

        Raises
        ------
        NotFoundError
            If there is no such snapshot.
        SnapshotDamagedError
            If the manifest is not a document.
        """
        name = manifest_object(snapshot_id)
        try:
            document = json.loads(self._backend.read(name))
        except FileNotFoundError:
            raise NotFoundError(f"there is no snapshot {snapshot_id!r}") from None
        except (ValueError, RecursionError) as error:
            raise SnapshotDamagedError(
                f"{self.shown}/{name} is not a manifest ({error}); delete it"
            ) from error
        if not isinstance(document, dict):
            raise SnapshotDamagedError(f"{self.shown}/{name} is not a manifest; delete it")
        return document

    def read_note(self, snapshot_id: str, kind: str) -> dict[str, Any] | None:
        """Return the note of a kind on a snapshot, None if there is none that can be read."""
        try:
            note = json.loads(self._backend.read(_note(snapshot_id, kind)))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return note if isinstance(note, dict) else None

    def write_note(self, snapshot_id: str, kind: str, document: Mapping[str, Any]) -> None:
        """Keep a small JSON document beside a snapshot, in the place of any former one.

        Raises
        ------
        NotFoundError
            If there is no such snapshot.
        """
        name = _note(snapshot_id, kind)
        with self._backend.writing():
            if not self._exists(snapshot_id):
                raise NotFoundError(f"there is no snapshot {snapshot_id!r}")
            self._backend.put(name, to_json(document))
            self._backend.settle()

    def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot and the chunks that no other one names.

        Raises
        ------
        NotFoundError
            If there is no such snapshot.
        """
        name = manifest_object(snapshot_id)
        if not self._exists(snapshot_id):
            raise NotFoundError(f"there is no snapshot {snapshot_id!r}")
        self._backend.delete(name)
        self._backend.settle()
        self._infos.pop(snapshot_id, None)
        self.collect_garbage()

    def collect_garbage(self) -> int:
        """Remove chunks no manifest names and what broken saves left, and return the bytes freed.

        Returns 0 without waiting while another process writes to the store. A manifest that
        cannot be read keeps all chunks.
        """
        with self._backend.collecting() as lease:
            if lease is None:
                return 0
            freed = garbage.collect(self, self._backend, lease)
            self._backend.settle()
            return freed

    @contextlib.contextmanager
    def writing(self, *, reuse: bool = True) -> Iterator[Writer]:
        """Open a writer; if the block fails, nothing of it can be seen and garbage is removed.

        Parameters
        ----------
        reuse
            Whether chunks that the store has need not be written again; False when they are not
            to be trusted.
        """
        writer = None
        done = False
        try:
            with self._backend.writing() as lease:
                known = self.locate()
                writer = Writer(self, self._backend, lease, known if reuse else {})
                try:
                    yield writer
                    done = True
                finally:
                    writer.close()
        finally:
            if not done and writer is not None and writer.left_garbage:
                with contextlib.suppress(SnapshotError):
                    self.collect_garbage()

    def read_chunk(self, name: str, into: memoryview) -> None:
        """Read chunk `name` into memory, not comparing it with its name.

        Any number of threads may call this at once.

        Raises
        ------
        SnapshotIncompleteError
            If the store does not have it.
        SnapshotDamagedError
            If it has another length than `into`.
        """
        where = self._where
        for fresh in (False, True):
            if where is None or fresh:
                where = self.locate()
            place = where.get(name)
            if place is not None:
                pack, offset, nbytes = place
                try:
                    count = self._backend.read_into(pack, offset, into[:nbytes])
                except FileNotFoundError:
                    continue  # garbage was removed since the list was read
                if nbytes != len(into) or count != nbytes:
                    raise SnapshotDamagedError(
                        f"chunk {name[:16]} in {self.shown}/{pack} has {min(count, nbytes)} bytes, "
                        f"not {len(into)}; the snapshot cannot be restored"
                    )
                return
        if self._damaged:
            raise SnapshotDamagedError(str(next(iter(self._damaged.values()))))
        raise SnapshotIncompleteError(
            f"{self.shown} lacks chunk {name[:16]}; the snapshot cannot be restored"
        )

    def locate(self) -> _Where:
        """Read the list of packs anew and return where each chunk is; not to be changed."""
        with self._lock():
            entries = sorted(self._backend.entries(packs.FOLDER), key=lambda e: e.name)
            entries = [e for e in entries if e.name.endswith(packs.SUFFIX)]
            changed = self._where is None or {e.name for e in entries} != self.pack_names()
            if not changed and self._where is not None:
                return self._where
            known: dict[str, packs.Index | SnapshotDamagedError | None]
            known = {**self._packs, **self._damaged}
            new = [e for e in entries if e.name not in known]
            for entry, index in zip(new, each(self._backend, self._index, new), strict=True):
                known[entry.name] = index
            self._packs, self._damaged = {}, {}
            where: _Where = {}
            for name in [e.name for e in entries]:
                index = known[name]
                if isinstance(index, SnapshotDamagedError):
                    self._damaged[name] = index
                elif index is not None:
                    self._packs[name] = index
                    where.update({n: (name, o, size) for n, (o, size) in index.items()})
            self._where = where
            return where

    def pack_names(self) -> set[str]:
        """Return the packs known, readable or not."""
        return self._packs.keys() | self._damaged.keys()

    def indexes(self) -> dict[str, packs.Index]:
        """Return the index of each readable pack, as `locate` found them."""
        return dict(self._packs)

    def learn(self, pack: str, index: packs.Index) -> None:
        """Take in a pack just published, so that it need not be read."""
        with self._lock():
            self._packs[pack] = dict(index)
            if self._where is not None:
                places = {n: (pack, offset, nbytes) for n, (offset, nbytes) in index.items()}
                self._where = {**self._where, **places}

    def _lock(self) -> threading.Lock:
        """Return a lock of this process: one held while a process forked stays held for ever."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def _exists(self, snapshot_id: str) -> bool:
        return any(_stem(entry) == snapshot_id for entry in self._backend.entries("manifests"))

    def _info(self, entry: Entry) -> SnapshotInfo | None:
        snapshot_id = _stem(entry)
        known = self._infos.get(snapshot_id)
        if known is not None:
            return known
        try:
            return read_info(snapshot_id, json.loads(self._backend.read(entry.name)))
        except (
            FileNotFoundError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            return None

    def _index(self, entry: Entry) -> packs.Index | SnapshotDamagedError | None:
        try:
            return packs.read_index(self._backend, entry.name, entry.nbytes)
        except FileNotFoundError:
            return None
        except SnapshotDamagedError as error:
            return error

    def _read_verdicts(self) -> dict[str, bool | None]:
        found = {}
        for entry in self._backend.entries("notes"):
            snapshot_id, _, kind = _stem(entry).partition(".")
            if kind == "verified" and ID.match(snapshot_id):
                known = self._verdicts.get(snapshot_id)
                if known is None or known[0] != entry:
                    note = self.read_note(snapshot_id, kind) or {}
                    verified = note.get("verified", note.get("ok"))
                    known = (entry, verified if isinstance(verified, bool) else None)
                found[snapshot_id] = known
        self._verdicts = found
        return {snapshot_id: verified for snapshot_id, (_, verified) in found.items()}


def _stem(entry: Entry) -> str:
    return entry.name.rpartition("/")[2].removesuffix(".json")


def _note(snapshot_id: str, kind: str) -> str:
    manifest_object(snapshot_id)
    if not KIND.match(kind):
        raise BadInputError(f"{kind!r} is no kind of note; use a short word in small letters")
    return f"notes/{snapshot_id}.{kind}.json"


def _with_verdict(info: SnapshotInfo, verified: bool | None) -> SnapshotInfo:
    return SnapshotInfo(
        info.snapshot_id,
        info.name,
        info.created_s,
        info.kernel_id,
        info.notebook,
        info.nbytes,
        info.variables,
        info.labels,
        verified,
    )
