"""A snapshot opened for looking: its signed manifest, and those of its bytes that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import SnapshotCancelledError, SnapshotDamagedError, SnapshotVersionError
from ..chunks import chunk_matches
from ..grouping import Key
from ..signing import FORMAT, check_signature
from ..stores import SnapshotStore
from ..transfer import read_chunk, read_into, unpatch
from .symbolic import read_stream

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]


class Opened:
    """A snapshot whose signature holds; every byte it gives was compared with its chunk's name.

    Parameters
    ----------
    store, snapshot_id, key
        The snapshot, and the key that it must be signed with.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    SnapshotRefusedError
        If it is unsigned, altered, or of another format; later also if a chunk read is not whole.
    """

    def __init__(self, store: SnapshotStore, snapshot_id: str, key: bytes) -> None:
        self.store = store
        self.snapshot_id = snapshot_id
        self.document = store.read(snapshot_id)
        self.manifest = check_signature(self.document, key, snapshot_id)
        if self.manifest.get("format") != FORMAT:
            raise SnapshotVersionError(
                f"snapshot {snapshot_id} has format {self.manifest.get('format')}, this version "
                f"reads {FORMAT}; open it with the version that wrote it"
            )
        self.buffers: dict[int, Mapping[str, Any]] = {
            buffer["index"]: buffer for buffer in self.manifest["buffers"]
        }
        self.variables: dict[str, Mapping[str, Any]] = {
            variable["name"]: variable for variable in self.manifest["variables"]
        }
        self._values: dict[int, list[Any]] = {}
        self._places: dict[Key, tuple[int, int]] = {
            tuple(key): (number, place)
            for number, group in enumerate(self.manifest["groups"])
            for place, key in enumerate(group["keys"])
        }

    @property
    def total_bytes(self) -> int:
        """The bytes of the state: its streams, and the memory they refer to."""
        entries = (*self.manifest["groups"], *self.manifest["buffers"])
        return sum(entry["nbytes"] for entry in entries)

    def read(self, entry: Mapping[str, Any]) -> memoryview:
        """Return the bytes of a group or a buffer."""
        patched = self.manifest["patched"].get(str(entry["blob"]))
        if patched is not None:
            old, patch = (self._whole(patched[part]) for part in ("base", "patch"))
            new = memoryview(unpatch(old, patched["blocks"], patch))
            return new[entry["offset"] : entry["offset"] + entry["nbytes"]]
        into = memoryview(bytearray(entry["nbytes"]))
        for name, nbytes, part in self._overlaps(entry):
            low, high = max(part, 0), min(part + nbytes, len(into))
            if low == part and high == part + nbytes:
                read_into(self.store, name, into[low:high])
            else:
                into[low:high] = read_chunk(self.store, name, nbytes)[low - part : high - part]
        return into

    def holds(self, entry: Mapping[str, Any], memory: memoryview) -> bool:
        """Tell whether `memory` has the bytes of a buffer, reading few of them."""
        if len(memory) != entry["nbytes"]:
            return False
        for name, nbytes, part in self._overlaps(entry):
            low, high = max(part, 0), min(part + nbytes, len(memory))
            if low == part and high == part + nbytes:
                same = chunk_matches(name, memory[low:high])
            else:
                same = (
                    memory[low:high]
                    == read_chunk(self.store, name, nbytes)[low - part : high - part]
                )
            if not same:
                return False
        return True

    def check_chunks(
        self, progress: Progress | None = None, cancelled: Cancelled | None = None
    ) -> int:
        """Read every chunk, compare it with its name and return the bytes read.

        Raises
        ------
        SnapshotRefusedError
            If one is missing or damaged.
        """
        chunks = dict(chunk for blob in self.manifest["blobs"] for chunk in blob)
        total, done = sum(chunks.values()), 0
        scratch = memoryview(bytearray(max(chunks.values(), default=0)))
        for name, nbytes in chunks.items():
            self.ask(cancelled, "verification")
            read_into(self.store, name, scratch[:nbytes])
            done += nbytes
            if progress is not None:
                progress(done, total)
        return done

    def ask(self, cancelled: Cancelled | None, what: str) -> None:
        """Raise `SnapshotCancelledError` if `what` was cancelled."""
        if cancelled is not None and cancelled():
            raise SnapshotCancelledError(
                f"the {what} of snapshot {self.snapshot_id} was cancelled; nothing was changed"
            )

    def values(self, number: int) -> list[Any]:
        """Return what group `number` holds, symbolically: one value for each of its keys."""
        if number not in self._values:
            group = self.manifest["groups"][number]
            found, _ = read_stream(self.read(group), buffers=group["out_of_band"])
            if len(found) != len(group["keys"]) + 1:
                raise SnapshotDamagedError(
                    f"stream {number} of snapshot {self.snapshot_id} has {len(found) - 1} values "
                    f"for {len(group['keys'])} names; the snapshot cannot be looked into"
                )
            self._values[number] = found[1:]  # the first stands for the namespace
        return self._values[number]

    def forget(self, number: int) -> None:
        """Let go of what `values` returned for group `number`."""
        self._values.pop(number, None)

    def group_of(self, key: Key) -> int | None:
        """Return the number of the group that has `key`."""
        place = self._places.get(key)
        return None if place is None else place[0]

    def value(self, key: Key) -> Any:
        """Return what is saved under `key`, symbolically; raises ``KeyError`` if nothing is."""
        number, place = self._places[key]
        return self.values(number)[place]

    def _overlaps(self, entry: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
        """Yield name and length of each chunk of an entry, and where in the entry it begins."""
        start = 0
        first, last = entry["offset"], entry["offset"] + entry["nbytes"]
        for name, nbytes in self.manifest["blobs"][entry["blob"]]:
            if start < last and start + nbytes > first:
                yield name, nbytes, start - first
            start += nbytes
        if last > start:
            raise SnapshotDamagedError(
                f"snapshot {self.snapshot_id} names bytes that no chunk of it has; "
                "it was not opened"
            )

    def _whole(self, number: int) -> memoryview:
        names = self.manifest["blobs"][number]
        return memoryview(b"".join(read_chunk(self.store, *chunk) for chunk in names))
