"""Chunks on their way to the store and back, two at a time."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import SnapshotCancelledError, SnapshotDamagedError, SnapshotError
from .chunks import CHUNK_BYTES, Buffer, Cutter, chunk_matches, chunk_name, optional
from .patches import Blocks, apply_patch, make_patch
from .streams import HANDED_ON_BYTES, PAYLOAD_BYTES

if TYPE_CHECKING:
    from .buffers import Source
    from .stores import SnapshotStore
    from .stores.store import Writer

WORKERS = 2
"""Hashing and writing keep a core each; more only contend for memory (measured on 2 cores)."""

REPORT_S = 0.1
PATCH_FROM_BYTES = 64 << 10
"""New bytes of a stream from which on a patch against its former self is tried."""

LOOKED_AT = 8
"""So many pieces of memory are looked at in one go; handing over one costs a tenth of a look."""

Names = list[tuple[str, int]]
Chunk = Future[tuple[str, int]] | tuple[str, int]
"""A chunk that is being written, or one that the store had."""

Progress = Callable[[int, int], None]


@dataclass
class ChunkCache:
    """What one session knows of the chunks it wrote last.

    `fingerprints` lead from a seeded xxh3 of memory to the name of its chunk: where nothing has
    changed, a pass of that hash (17 GB/s here, BLAKE3 2.8) is all that a save costs. The seed is
    secret to the process, so nobody can prepare memory that collides.
    """

    seed: int = field(default_factory=lambda: int.from_bytes(os.urandom(8), "little"))
    fingerprints: dict[bytes, str] = field(default_factory=dict)
    bases: dict[str, Names] = field(default_factory=dict)


_caches: dict[str, ChunkCache] = {}


def cache_of(store: SnapshotStore) -> ChunkCache:
    """Return the cache of a store for this process."""
    return _caches.setdefault(store.url, ChunkCache())


class ChunkWriter:
    """Hashes and writes the chunks of one snapshot.

    Each chunk is copied before it is hashed, so that what is written is what was hashed even if
    some thread, or another process that shares the memory, changes it meanwhile. From then on the
    copy lies in the processor's cache, which makes up for it.
    """

    def __init__(
        self,
        store: SnapshotStore,
        writer: Writer,
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.total_bytes = 0
        self.done_bytes = 0
        self.patched: dict[str, Any] = {}
        self._store = store
        self._writer = writer
        self._cache = cache_of(store)
        self._seen = ChunkCache(self._cache.seed)
        self._pool = ThreadPoolExecutor(WORKERS, "jupyter-gpu-predict-chunks")
        self._lock = threading.Lock()
        self._stop = False
        # Made when they are first needed: a session of small objects has none that long.
        self._stages: queue.SimpleQueue[bytearray | None] = queue.SimpleQueue()
        for _ in range(WORKERS):
            self._stages.put(None)
        self._foreseen: dict[int, list[Future[list[bytes | None]]]] = {}
        self._progress = progress
        self._cancelled = cancelled
        self._told_at = 0.0

    def close(self, *, done: bool) -> None:
        """End the workers; if all went well the cache is what this snapshot holds."""
        self._stop = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        if done:
            self._cache.fingerprints = self._seen.fingerprints
            self._cache.bases = self._seen.bases

    def foresee(self, source: Source) -> None:
        """Begin to look at memory that will be written, while other objects are still pickled."""
        if self._cache.fingerprints and not source.device and source.nbytes >= CHUNK_BYTES:
            pieces = _pieces(source.read())
            runs = (pieces[i : i + LOOKED_AT] for i in range(0, len(pieces), LOOKED_AT))
            self._foreseen[id(source)] = [self._pool.submit(self._look, run) for run in runs]

    def memory(self, source: Source, data: memoryview) -> list[Chunk]:
        """Begin to write memory that is cut at fixed places."""
        pieces = _pieces(data)
        looks = self._foreseen.pop(id(source), ())
        marks = [mark for look in looks for mark in look.result()]
        if len(marks) != len(pieces):
            return [self._pool.submit(self._chunk, piece) for piece in pieces]
        found: list[Chunk] = []
        for piece, mark in zip(pieces, marks, strict=True):
            name = self._known(mark)
            if name is None or mark is None:
                found.append(self._pool.submit(self._chunk, piece))
            else:
                found.append(self._note(mark, name, len(piece)))
        return found

    def wait(self, chunks: Iterable[Chunk]) -> Names:
        """Return the chunks' names when all of them are in the store's pack.

        Raises
        ------
        SnapshotCancelledError
            If the save was cancelled meanwhile.
        """
        names = []
        for chunk in chunks:
            names.append(chunk.result() if isinstance(chunk, Future) else chunk)
            self.tell()
        return names

    @property
    def has_bases(self) -> bool:
        """Whether there is a former snapshot whose streams new ones can be patches of."""
        return bool(self._cache.bases)

    def remember(self, key: str, names: Names) -> None:
        """Keep which chunks a stream has, for the next snapshot."""
        self._seen.bases[key] = names

    def stream(self, key: str, parts: list[Buffer]) -> Names:
        """Write a stream that is cut by its contents, as a patch of its former self if that pays.

        `key` says what stream it is, from one snapshot to the next. The parts are let go.
        """
        base = self._cache.bases.get(key)
        if base is None or any(len(part) >= PAYLOAD_BYTES for part in parts):
            blob = StreamBlob(self)
            for part in _drained(parts):
                blob.feed(part)
            names = blob.close()
            self.remember(key, names)
            return names
        pieces: list[bytes] = []
        cutter = Cutter(pieces.append)
        for part in _drained(parts):
            cutter.feed(part)
        cutter.close()
        names = [(chunk_name(piece), len(piece)) for piece in pieces]
        self._count(sum(length for _, length in names))
        new = [i for i, (name, _) in enumerate(names) if not self._writer.has(name)]
        new_bytes = sum(names[i][1] for i in new)
        if new_bytes >= PATCH_FROM_BYTES:
            patched = self._patch(base, pieces, new_bytes)
            if patched is not None:
                self.remember(key, base)
                self.patched[key] = patched
                return []
        for i in new:
            self._add(names[i][0], memoryview(pieces[i]))
        self.remember(key, names)
        return names

    def _patch(self, base: Names, pieces: list[bytes], new_bytes: int) -> dict[str, Any] | None:
        if sum(length for _, length in base) > HANDED_ON_BYTES:
            return None
        try:
            old = b"".join(read_chunk(self._store, name, length) for name, length in base)
        except SnapshotError:
            return None  # it was deleted since; the whole stream is written again
        blocks, patch = make_patch(old, b"".join(pieces))
        if len(patch) > new_bytes // 2:
            return None
        names = []
        for start in range(0, len(patch), CHUNK_BYTES):
            piece = memoryview(patch)[start : start + CHUNK_BYTES]
            names.append((chunk_name(piece), len(piece)))
            self._add(names[-1][0], piece)
        return {"base": base, "patch": names, "blocks": blocks}

    def tell(self, *, at_once: bool = False) -> None:
        """Report progress now and then, and stop if that is wanted.

        Raises
        ------
        SnapshotCancelledError
            If the save was cancelled.
        """
        if self._cancelled is not None and self._cancelled():
            self._stop = True
            raise SnapshotCancelledError("the save was cancelled; earlier snapshots are whole")
        now = time.monotonic()
        if self._progress is not None and (at_once or now - self._told_at >= REPORT_S):
            self._told_at = now
            self._progress(min(self.done_bytes, self.total_bytes), self.total_bytes)

    def _chunk(self, data: memoryview) -> tuple[str, int]:
        if self._stop:
            raise SnapshotCancelledError("the save was cancelled; earlier snapshots are whole")
        name = None
        if self._cache.fingerprints:
            # Only where something is known is it worth a pass over memory that may be new.
            mark = self._fingerprint(data)
            name = self._known(mark)
        if name is None:
            stage = self._stages.get()
            try:
                stage = stage or bytearray(CHUNK_BYTES)
                copy = memoryview(stage)[: len(data)]
                copy[:] = data
                mark = self._fingerprint(copy)
                name = self._known(mark)
                if name is None:
                    name = chunk_name(copy)
                    self._add(name, copy)
            finally:
                self._stages.put(stage)
        return self._note(mark, name, len(data))

    def _note(self, mark: bytes | None, name: str, nbytes: int) -> tuple[str, int]:
        if mark:
            self._seen.fingerprints[mark] = name
        self._count(nbytes)
        return name, nbytes

    def _look(self, pieces: list[memoryview]) -> list[bytes | None]:
        return [None if self._stop else self._fingerprint(piece) for piece in pieces]

    def _known(self, mark: bytes | None) -> str | None:
        if mark is None:
            return None
        name = self._cache.fingerprints.get(mark) or self._seen.fingerprints.get(mark)
        return name if name is not None and self._writer.has(name) else None

    def _fingerprint(self, data: memoryview) -> bytes | None:
        digest = optional("xxhash", "xxh3_128_digest")
        if digest is None:
            return None
        mark: bytes = digest(data, self._cache.seed)
        return mark

    def _add(self, name: str, data: memoryview) -> None:
        with self._lock:
            self._writer.add(name, data)

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.done_bytes += nbytes


def _pieces(data: memoryview) -> list[memoryview]:
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]


def _drained(parts: list[Buffer]) -> Iterator[Buffer]:
    parts.reverse()
    while parts:
        yield parts.pop()


class StreamBlob:
    """A stream too long to be kept, cut and written as it comes."""

    def __init__(self, chunks: ChunkWriter) -> None:
        self._chunks = chunks
        self._names: Names = []
        self._cutter = Cutter(self._piece)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes."""
        if len(data) < PAYLOAD_BYTES:
            self._cutter.feed(data)
            return
        self._cutter.close()
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            self._piece(view[start : start + CHUNK_BYTES])

    def close(self) -> Names:
        """Return names and lengths of its chunks."""
        self._cutter.close()
        return self._names

    def _piece(self, data: Buffer) -> None:
        if isinstance(data, memoryview) and not data.readonly:
            data = bytes(data)  # what is written must be what was hashed
        name = chunk_name(data)
        self._chunks._add(name, memoryview(data))
        self._chunks._count(len(data))
        self._names.append((name, len(data)))


def read_chunk(store: SnapshotStore, name: str, nbytes: int) -> bytearray:
    """Return a chunk whose hash was found right.

    Raises
    ------
    SnapshotIncompleteError
        If the store does not have it.
    SnapshotDamagedError
        If its bytes are not those that were written.
    """
    data = bytearray(nbytes)
    read_into(store, name, memoryview(data))
    return data


def read_into(store: SnapshotStore, name: str, into: memoryview) -> None:
    """Read a chunk into memory and check its hash; raises as `read_chunk` does."""
    store.read_chunk(name, into)
    if not chunk_matches(name, into):
        raise SnapshotDamagedError(
            f"chunk {name[:16]} in {store.shown} is damaged or altered; nothing of the "
            "snapshot was opened"
        )


def unpatch(old: memoryview, blocks: Blocks, patch: memoryview) -> bytes:
    """Return the stream that a patch makes of its former self.

    Raises
    ------
    SnapshotDamagedError
        If they do not fit.
    """
    try:
        return apply_patch(bytes(old), blocks, patch)
    except ValueError as error:
        raise SnapshotDamagedError(f"a stream cannot be put together: {error}") from error
