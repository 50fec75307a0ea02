"""Writing of one snapshot: chunks into packs, and the manifest last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import SnapshotError
from . import packs
from .backend import Backend, Lease, Upload, uploading
from .catalogue import chunk_names, manifest_object, to_json

if TYPE_CHECKING:
    from .store import SnapshotStore


class Writer:
    """Writes the chunks of one snapshot and then its manifest; for one thread at a time."""

    def __init__(
        self, store: SnapshotStore, backend: Backend, lease: Lease, known: Mapping[str, Any]
    ) -> None:
        self._store = store
        self._backend = backend
        self._lease = lease
        self._known = known
        self._added: set[str] = set()
        self._index: dict[str, tuple[int, int]] = {}
        self._pack = ""
        self._upload: Upload | None = None
        self._offset = 0
        self._broken = False
        self.bytes_written = 0
        self.left_garbage = False

    def has(self, name: str) -> bool:
        """Return whether a chunk is in the store already, or was added before."""
        return name in self._known or name in self._added

    def add(self, name: str, data: memoryview) -> None:
        """Write a chunk unless the store has it; `data` may be reused afterwards."""
        if self.has(name):
            return
        self._check()
        if data.format != "B" or data.ndim != 1:
            data = data.cast("B")
        if self._upload is not None and self._offset + len(data) > self._backend.pack_limit:
            self._close_pack()
        self._broken = True
        if self._upload is None:
            self._pack = packs.new_name()
            self._upload = self._backend.create(self._pack)
            self._offset = 0
        self._upload.write(data)
        self._broken = False
        self._index[name] = (self._offset, len(data))
        self._added.add(name)
        self._offset += len(data)
        self.bytes_written += len(data)

    def manifest(self, snapshot_id: str, document: Mapping[str, Any]) -> None:
        """Make all chunks durable and write the signed manifest; from then the snapshot exists."""
        self._check()
        name = manifest_object(snapshot_id)
        text = to_json(document)
        self._close_pack()
        if not self._lease.renew() and not chunk_names(document) <= self._store.locate().keys():
            self._broken = True
            raise SnapshotError(
                f"the save to {self._store.shown} stood still for so long that its chunks may "
                "have been removed as garbage; save again"
            )
        with uploading(self._backend.create(name)) as upload:
            upload.write(memoryview(text))
            upload.finish()
            # Here, because a journal that has just taken the manifest has the pack's name too.
            self._backend.settle()
            upload.publish()
        self._backend.settle()
        self.bytes_written += len(text)
        self.left_garbage = False

    def close(self) -> None:
        """Drop the pack being written, if there is one."""
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.abort()

    def _check(self) -> None:
        if self._broken:
            raise SnapshotError(f"this save to {self._store.shown} has failed before; save again")

    def _close_pack(self) -> None:
        if self._upload is None:
            return
        self._broken = True
        upload = self._upload
        end = packs.footer(self._index)
        upload.write(memoryview(end))
        upload.finish()
        self.left_garbage = True
        upload.publish()
        self._store.learn(self._pack, self._index)
        self.bytes_written += len(end)
        self._upload, self._index = None, {}
        self._broken = False
