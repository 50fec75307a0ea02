"""A save in the background: a forked child has the memory as it was and writes it at leisure.

The objects are pickled in the kernel, where their code belongs. The child only hashes and writes
memory; it touches no library, no device and no Python object of the user's. `os.fork` copies page
tables, not memory: 1 GB takes some 10 ms.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

from .. import errors
from ..errors import SnapshotCancelledError, SnapshotError
from .capture import Header, Prepared, longest_stream, prepare, write
from .chunks import load_hashes
from .report import CaptureReport
from .stores import SnapshotStore, validate_name
from .streams import Stream
from .transfer import ChunkCache, ChunkWriter, cache_of

NICENESS = 5
"""The child gives way to the cell that runs meanwhile."""


@dataclass(frozen=True, slots=True)
class SaveProgress:
    """How far a save has come."""

    done_bytes: int
    total_bytes: int
    finished: bool


def begin_capture(
    namespace: dict[str, Any],
    store: SnapshotStore,
    key: bytes,
    *,
    name: str,
    now_s: float,
    kernel_id: str,
    notebook: str | None = None,
    hidden: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
    digests: bool = False,
    labels: Mapping[str, Any] | None = None,
) -> BackgroundCapture:
    """Save the namespace as it is now, in a child process; parameters are those of `capture`.

    Raises
    ------
    BadInputError
        If `name` cannot name a snapshot.
    SnapshotError
        If no process can be started.
    """
    validate_name(name)
    header = Header(name, now_s, kernel_id, notebook, dict(labels or {}))
    make_stream = partial(Stream, bound=longest_stream())
    began = time.perf_counter()
    state = prepare(namespace, header, hidden, extra, digests=digests, make_stream=make_stream)
    _bring_to_host(state)
    load_hashes()
    return BackgroundCapture(store, key, state, began)


def _bring_to_host(state: Prepared) -> None:
    """Copy what a child cannot read, device memory, or what changes under it, shared memory."""
    sources = state.context.buffers.sources
    for index, source in state.sources.items():
        shared = getattr(source.owner, "is_shared", None)
        if source.device or (shared is not None and shared()):
            data = source.read()
            if not source.device:
                data = memoryview(bytearray(data))
            sources[index] = replace(source, read=partial(_same, data), device=False)


def _same(data: memoryview) -> memoryview:
    return data


class BackgroundCapture:
    """A save under way in a child process.

    Attributes
    ----------
    pid
        The child; ``None`` once it has ended.
    pause_s
        How long the kernel stood still.
    """

    def __init__(self, store: SnapshotStore, key: bytes, state: Prepared, began: float) -> None:
        self._cache = cache_of(store)
        self._report: CaptureReport | None = None
        self._error: SnapshotError | None = None
        self._progress = SaveProgress(0, 0, False)
        self._received = b""
        self._lock = threading.Lock()
        self._cancelled = False
        self._template = state.variables, state.not_saved, state.header.name
        self._started = state.started_s
        reading, writing = os.pipe()
        try:
            pid = _fork()
        except OSError as error:
            os.close(reading)
            os.close(writing)
            raise SnapshotError(f"no process could be started for the save: {error}") from error
        if pid == 0:
            _child(store, key, state, writing)
        os.close(writing)
        self.pid: int | None = pid
        self._pipe = reading
        self.pause_s = time.perf_counter() - began

    def poll(self) -> SaveProgress:
        """Return how far it has come, without waiting."""
        with self._lock:
            self._receive(0)
            return self._progress

    def result(self) -> CaptureReport:
        """Wait for the end and return what was saved.

        Raises
        ------
        SnapshotCancelledError
            If it was cancelled.
        SnapshotError
            What went wrong in the child; nothing of the snapshot is left.
        """
        while not self.poll().finished:
            if self.pid is not None:
                _readable(self._pipe, 1.0)
        if self._error is not None:
            raise self._error
        assert self._report is not None  # noqa: S101
        return self._report

    def cancel(self) -> None:
        """End it; the store is as it was before."""
        with self._lock:
            if self.pid is not None:
                self._cancelled = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)

    def _receive(self, timeout_s: float) -> None:
        while self.pid is not None and _readable(self._pipe, timeout_s):
            data = os.read(self._pipe, 1 << 16)
            if not data:
                self._end()
                return
            self._received += data
            *lines, self._received = self._received.split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "done" in message:
            self._progress = SaveProgress(message["done"], message["total"], False)
        elif "error" in message:
            kind = getattr(errors, message["error"], SnapshotError)
            self._error = kind(message["text"])
        else:
            variables, not_saved, name = self._template
            self._cache.fingerprints = {
                bytes.fromhex(mark): chunk for mark, chunk in message.pop("fingerprints")
            }
            self._cache.bases = {
                k: [(chunk, length) for chunk, length in v] for k, v in message.pop("bases").items()
            }
            self._report = CaptureReport(
                name=name, variables=variables, not_saved=not_saved, **message
            )

    def _end(self) -> None:
        os.close(self._pipe)
        assert self.pid is not None  # noqa: S101
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.pid = None
        if self._report is None and self._error is None:
            self._error = (
                SnapshotCancelledError("the save was cancelled; earlier snapshots are whole")
                if self._cancelled
                else SnapshotError(
                    "the process that wrote the snapshot ended early, perhaps for want of memory; "
                    "earlier snapshots are whole"
                )
            )
        done = self._progress
        self._progress = SaveProgress(done.done_bytes, done.total_bytes, True)


def _readable(pipe: int, timeout_s: float) -> bool:
    # `select.select` knows descriptors below 1,024 only.
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(timeout_s * 1000))


def _fork() -> int:
    with warnings.catch_warnings():
        # The child calls nothing that could wait for another thread's lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _child(store: SnapshotStore, key: bytes, state: Prepared, pipe: int) -> NoReturn:
    code = 1
    try:
        gc.disable()
        # When a kernel dies its whole process group is killed; this save is what is left of it.
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        let_go_of_files(pipe)
        os.nice(NICENESS)
        tell = partial(_tell, pipe)
        try:
            tell(_write(store, key, state, tell))
            code = 0
        except errors.GpuPredictError as error:
            tell({"error": type(error).__name__, "text": str(error)})
        except BaseException as error:
            text = f"the snapshot could not be written: {type(error).__name__}: {error}"
            tell({"error": "SnapshotError", "text": text})
    finally:
        os._exit(code)


def _write(
    store: SnapshotStore, key: bytes, state: Prepared, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    with store.writing() as writer:
        chunks = ChunkWriter(
            store,
            writer,
            progress=lambda done, total: tell({"done": done, "total": total}),
        )
        done = False
        try:
            report = write(state, key, writer, chunks)
            done = True
        finally:
            chunks.close(done=done)
    cache: ChunkCache = cache_of(store)
    return {
        "snapshot_id": report.snapshot_id,
        "bytes_written": report.bytes_written,
        "total_bytes": report.total_bytes,
        "seconds": report.seconds,
        "fingerprints": [(mark.hex(), chunk) for mark, chunk in cache.fingerprints.items()],
        "bases": cache.bases,
    }


def _tell(pipe: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    # Nobody may listen any more: a save goes on when its kernel has died.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(pipe, data) :]


def let_go_of_files(*kept: int) -> None:
    """Let go of what a forked child inherited: a restarted kernel needs the former one's ports.

    Each file gives way to the null device and its number stays taken. If it were free, an object
    of the kernel's that is collected later could close a new file under the same number.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in (null, *kept):
            with contextlib.suppress(OSError):  # the listing's own
                os.fstat(int(name))
                os.dup2(null, int(name))
    os.close(null)


__all__ = ["BackgroundCapture", "SaveProgress", "begin_capture"]
