"""The bytes of a snapshot on their way back: every chunk is checked before anything is opened."""

from __future__ import annotations

import io
import itertools
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..errors import SnapshotCancelledError, SnapshotDamagedError, SnapshotError
from .buffers import allocate
from .chunks import CHUNK_BYTES, Buffer, chunk_matches, chunk_name
from .patches import patched_blocks
from .transfer import (
    REPORT_S,
    WORKERS,
    Names,
    Progress,
    read_chunk,
    read_into,
    unpatch,
)

if TYPE_CHECKING:
    from .stores import SnapshotStore

KEPT_STREAM_BYTES = 4 << 20
"""A stream up to this size is kept in memory; a longer one is read twice and checked twice."""

_Piece = tuple[str, "memoryview | None", int]

READ_AHEAD_BYTES = 256 << 10
"""Twice what the C unpickler asks for at a time where a stream has no frames."""


class BlobReader:
    """Reads the blobs that some groups of a snapshot need.

    Parameters
    ----------
    groups
        Numbers of the groups that will be loaded.

    Raises
    ------
    SnapshotIncompleteError
        If the store lacks a chunk.
    SnapshotDamagedError
        If a chunk's bytes are not those that were written.
    SnapshotCancelledError
        If it was cancelled.
    """

    def __init__(
        self,
        store: SnapshotStore,
        manifest: Mapping[str, Any],
        groups: Collection[int],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.owners: dict[int, Any] = {}
        self.total_bytes = 0
        self.done_bytes = 0
        self._store = store
        self._blobs: list[Names] = manifest["blobs"]
        self._patched: Mapping[str, Any] = manifest["patched"]
        self._buffers: list[Mapping[str, Any]] = manifest["buffers"]
        self._memory: dict[int, memoryview] = {}
        self._lengths: dict[int, int] = {}
        self._zeros = chunk_name(bytes(CHUNK_BYTES))
        self._lock = threading.Lock()
        self._stop = False
        self._progress = progress
        self._cancelled = cancelled
        self._read(manifest, groups)

    def stream(self, group: Mapping[str, Any]) -> io.BufferedReader:
        """Return a group's stream as a file."""
        memory = self._memory.get(group["blob"])
        if memory is not None:
            part = memory[group["offset"] : group["offset"] + group["nbytes"]]
            return io.BufferedReader(_Memory(part), 1 << 20)
        pieces: Iterator[Buffer] = self._pieces(group["blob"])
        if (entry := self._patched.get(str(group["blob"]))) is not None:
            former = _Parts(self._store, self._blobs[entry["base"]])
            patch = self._pieces(entry["patch"])
            pieces = patched_blocks(entry["blocks"], former.read, lambda: next(patch, b""))
        return io.BufferedReader(_Pieces(pieces), READ_AHEAD_BYTES)

    def _pieces(self, number: int) -> Iterator[bytearray]:
        """Yield the chunks of a blob; each is read and checked once more when it is its turn."""
        return (read_chunk(self._store, *entry) for entry in self._blobs[number])

    def read_again(self, index: int) -> Any:
        """Return memory that somebody has taken, in a new owner."""
        buffer = next(b for b in self._buffers if b["index"] == index)
        owner, target = allocate(buffer)
        start = buffer["offset"]
        whole = self._memory.get(buffer["blob"])
        if whole is None:
            whole = self._whole(self._blobs[buffer["blob"]])
        target[:] = whole[start : start + len(target)]
        return owner

    def _read(self, manifest: Mapping[str, Any], groups: Collection[int]) -> None:
        chosen = [manifest["groups"][number] for number in groups]
        wanted = {index for group in chosen for index in group["buffers"]}
        spread: list[tuple[memoryview, Mapping[str, Any]]] = []
        kept: set[int] = set()
        for buffer in manifest["buffers"]:
            if buffer["index"] not in wanted:
                continue
            try:
                owner, target = allocate(buffer)
            except SnapshotError:
                # Without the library the streams that need it fail by themselves and say so.
                continue
            self.owners[buffer["index"]] = owner
            if len(target) == self._length(buffer["blob"]) and buffer["offset"] == 0:
                self._memory.setdefault(buffer["blob"], target)
                if self._memory[buffer["blob"]] is target:
                    kept.add(buffer["blob"])
                    continue
            spread.append((target, buffer))
        passing = set()
        for number in {e["blob"] for e in chosen} | {b["blob"] for _, b in spread}:
            if number in self._memory:
                continue
            length = self._length(number)
            entry = {g["blob"] for g in chosen if g["nbytes"] == length}
            if length > KEPT_STREAM_BYTES and number in entry:
                passing.add(number)
            else:
                self._memory[number] = memoryview(bytearray(length))
        self._fetch(passing)
        for target, buffer in spread:
            start = buffer["offset"]
            target[:] = self._memory[buffer["blob"]][start : start + buffer["nbytes"]]
        for number in kept:
            # Its owner may go before this.
            del self._memory[number]

    def _length(self, number: int) -> int:
        known = self._lengths.get(number)
        if known is None:
            known = self._lengths[number] = self._measured(number)
        return known

    def _measured(self, number: int) -> int:
        patched = self._patched.get(str(number))
        if patched is not None:
            return sum(length for length, _ in patched["blocks"])
        return sum(length for _, length in self._blobs[number])

    def _fetch(self, passing: Collection[int]) -> None:
        """Read every chunk, two at a time, and put patched streams together."""
        plain = [n for n in self._memory if str(n) not in self._patched]
        self.total_bytes = sum(map(self._length, (*self._memory, *passing)))
        pieces: list[_Piece] = []
        for number in plain:
            start = 0
            for name, length in self._blobs[number]:
                pieces.append((name, self._memory[number][start : start + length], length))
                start += length
            if start != len(self._memory[number]):
                raise SnapshotDamagedError(f"a blob of the snapshot has {start} bytes only")
        parts = [self._patched.get(str(n), {"base": n, "patch": None}) for n in passing]
        read = [n for entry in parts for n in (entry["base"], entry["patch"]) if n is not None]
        pieces += [(name, None, length) for n in read for name, length in self._blobs[n]]
        with ThreadPoolExecutor(WORKERS, "jupyter-gpu-predict-chunks") as pool:
            self._await([pool.submit(self._chunks, run) for run in _runs(pieces)])
        for number in self._memory:
            entry = self._patched.get(str(number))
            if entry is not None:
                old, patch = (self._whole(self._blobs[entry[part]]) for part in ("base", "patch"))
                self._memory[number] = memoryview(unpatch(old, entry["blocks"], patch))

    def _await(self, futures: list[Future[None]]) -> None:
        told_at = time.monotonic()
        try:
            for future in futures:
                future.result()
                if self._cancelled is not None and self._cancelled():
                    raise SnapshotCancelledError(
                        "the restore was cancelled; the namespace is as it was"
                    )
                now = time.monotonic()
                if self._progress is not None and now - told_at >= REPORT_S:
                    told_at = now
                    self._progress(self.done_bytes, self.total_bytes)
        except BaseException:
            self._stop = True
            for future in futures:
                future.cancel()
            raise
        if self._progress is not None:
            self._progress(self.total_bytes, self.total_bytes)

    def _whole(self, names: Names) -> memoryview:
        parts = [read_chunk(self._store, name, length) for name, length in names]
        return memoryview(b"".join(parts))

    def _chunks(self, run: list[_Piece]) -> None:
        for name, into, length in run:
            if self._stop:
                return
            if into is None:
                read_chunk(self._store, name, length)
            elif name != self._zeros or not chunk_matches(name, into):
                # Memory that is zero already is not written: a sparse array stays sparse.
                read_into(self._store, name, into)
            with self._lock:
                self.done_bytes += length


def _runs(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Put small chunks together: handing each over would take longer than to read it."""
    run: list[_Piece] = []
    size = 0
    for piece in pieces:
        if run and size + piece[2] > CHUNK_BYTES:
            yield run
            run, size = [], 0
        run.append(piece)
        size += piece[2]
    if run:
        yield run


class _Memory(io.RawIOBase):
    """Memory as a file that can be read once."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        count = min(len(into), len(self._data))
        into[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


class _Pieces(io.RawIOBase):
    """Pieces one after the other as a file."""

    def __init__(self, pieces: Iterator[Buffer]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(into), len(self._rest))
        into[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Parts:
    """A blob that is read here and there, mostly from its beginning to its end."""

    def __init__(self, store: SnapshotStore, names: Names) -> None:
        lengths = (length for _, length in names)
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self._chunk = lru_cache(maxsize=4)(lambda number: read_chunk(store, *names[number]))

    def read(self, place: int, length: int) -> bytes:
        """Return `length` bytes from a place on; fewer where the blob ends."""
        found = bytearray()
        end = min(place + length, self._starts[-1])
        while place < end:
            number = bisect_right(self._starts, place) - 1
            start = self._starts[number]
            part = self._chunk(number)[place - start : end - start]
            found += part
            place += len(part)
        return bytes(found)
