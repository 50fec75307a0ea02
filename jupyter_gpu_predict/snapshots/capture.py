"""Save a namespace as a signed snapshot."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from .buffers import Source
from .chunks import Buffer
from .collector import paused_gc
from .digest import digest, digests
from .digest_bounded import bounded_digests
from .grouping import Key
from .libraries import absolute_paths, versions
from .omission import Choose, leave_out
from .pickling import Context
from .report import CaptureReport, VariableReport, type_name
from .sharing import Group, Plan, make_plan
from .signing import FORMAT, python_version, sign
from .stores import SnapshotStore, Writer, validate_name
from .streams import HANDED_ON_BYTES, Stream
from .transfer import ChunkWriter, Names, Progress, StreamBlob

OWN_BLOB_BYTES = 1 << 20
"""Streams from this size on get a blob of their own."""

OWN_CHUNK_BYTES = 64 << 10
"""Memory from this size on gets a chunk of its own, which is then read to where it belongs."""

SPARE_STREAM_BYTES = 64 << 20

MODULE_NAMES = frozenset(
    {
        "__builtin__",
        "__builtins__",
        "__cached__",
        "__doc__",
        "__file__",
        "__loader__",
        "__name__",
        "__package__",
        "__spec__",
        "__warningregistry__",
    }
)
"""Names that every module has, which belong to the process and not to the session."""

COMPILED_NAMES = ("__compiled_fn_", "__builtins_dict__", "__resume_at_", "__import_")
"""How the names begin that ``torch.compile`` enters for what it compiled in this process."""


def capture(
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
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    choose: Choose | None = None,
) -> CaptureReport:
    """Save the variables of `namespace`; what cannot be saved is named and left out.

    Parameters
    ----------
    namespace
        The session's variables; functions whose globals this is will follow the namespace they
        are restored into.
    now_s
        Seconds since the epoch, kept as the time of creation.
    hidden
        Names that are not the user's.
    extra
        Further objects, returned by `restore`. They may refer to the same objects as variables. A
        dictionary directly under a key is saved entry by entry, so that one that cannot be saved
        does not spoil the others.
    digests
        Take the digest of each variable as it is here, for `restore` to compare. It walks every
        object in Python, which takes longer than the save.
    labels
        Plain JSON kept with the snapshot.
    progress
        Called with bytes done and bytes in all, at most ten times a second.
    cancelled
        Asked between chunks; a true answer ends the save.
    choose
        Says which variables to leave out, since they will be made again; see `omission`.

    Raises
    ------
    BadInputError
        If `name` cannot name a snapshot.
    StorageFullError
        If the store has no room; earlier snapshots are whole.
    SnapshotCancelledError
        If it was cancelled; nothing of it is left.
    SnapshotError
        If the store cannot be written.
    """
    validate_name(name)
    header = Header(name, now_s, kernel_id, notebook, dict(labels or {}))
    with paused_gc(), store.writing() as writer:
        chunks = ChunkWriter(store, writer, progress=progress, cancelled=cancelled)
        done = False
        try:
            make_stream = partial(
                Stream,
                open_blob=lambda: StreamBlob(chunks),
                # With nothing to be a patch of, streams need not be kept to be compared.
                kept_bytes=HANDED_ON_BYTES if chunks.has_bases else OWN_BLOB_BYTES,
                cancelled=cancelled,
                bound=longest_stream(),
            )
            state = prepare(
                namespace,
                header,
                hidden,
                extra,
                digests=digests,
                make_stream=make_stream,
                foresee=chunks.foresee,
            )
            if choose is not None:
                state = leave_out(state, choose)
            report = write(state, key, writer, chunks)
            done = True
        finally:
            chunks.close(done=done)
    return report


@dataclass(frozen=True, slots=True)
class Header:
    """What the caller says about a snapshot."""

    name: str
    now_s: float
    kernel_id: str
    notebook: str | None
    labels: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A namespace pickled, its memory not yet read."""

    header: Header
    context: Context
    plan: Plan
    variables: tuple[VariableReport, ...]
    not_saved: tuple[str, ...]
    started_s: float
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def sources(self) -> dict[int, Source]:
        """The memory that the streams refer to, by number."""
        used = sorted({index for group in self.plan.groups for index in group.buffers})
        return {index: self.context.buffers.sources[index] for index in used}


def prepare(
    namespace: dict[str, Any],
    header: Header,
    hidden: Collection[str],
    extra: Mapping[str, Any] | None,
    *,
    digests: bool,
    make_stream: Callable[..., Stream] = Stream,
    foresee: Callable[[Source], None] | None = None,
) -> Prepared:
    """Pickle the variables of `namespace` into streams; `foresee` hears of memory as it is met."""
    started = time.perf_counter()
    hidden = frozenset(hidden)
    variables = {
        n: v
        # A list at once: a thread may bind a name meanwhile.
        for n, v in list(namespace.items())
        if isinstance(n, str)
        and n not in hidden
        and n not in MODULE_NAMES
        and not n.startswith(COMPILED_NAMES)
    }
    values: dict[Key, Any] = {("var", n): v for n, v in variables.items()}
    values.update(_flatten(extra or {}))
    with paused_gc():
        context = Context(namespace)
        context.buffers.foresee = foresee
        plan = make_plan(context, values, make_stream=make_stream)
        # What could not be pickled may also have no end for whoever walks it.
        saved = [n for n in variables if ("var", n) not in plan.failures]
        found = _digests(namespace, saved) if digests else {}
        lost = [n for n in variables if ("var", n) in plan.failures]
        found.update(bounded_digests(namespace, lost))
    reports = tuple(_report(n, value, plan, found.get(n, "")) for n, value in variables.items())
    missing = tuple(
        f"{_spoken(k)}: {f.reason}" for k, f in plan.failures.items() if k[0] == "extra"
    )
    return Prepared(header, context, plan, reports, missing, started)


_digests = digests


def write(state: Prepared, key: bytes, writer: Writer, chunks: ChunkWriter) -> CaptureReport:
    """Write streams and memory, then the manifest."""
    began = time.perf_counter()
    header, plan = state.header, state.plan
    sources = state.sources
    total = sum(g.stream.nbytes for g in plan.groups) + sum(s.nbytes for s in sources.values())
    chunks.total_bytes = total
    blobs = _Blobs(chunks)
    buffers = blobs.memory(sources)
    groups = [
        {
            "keys": [list(k) for k in group.keys],
            "starts": group.starts,
            "buffers": group.buffers,
            "out_of_band": group.out_of_band,
            "classes": group.classes,
            **blobs.stream(group),
        }
        for group in plan.groups
    ]
    blobs.finish([*groups, *buffers])
    created = time.strftime("%Y%m%dT%H%M%S", time.gmtime(header.now_s))
    snapshot_id = f"{created}-{secrets.token_hex(6)}"
    manifest = {
        "format": FORMAT,
        "id": snapshot_id,
        "name": header.name,
        "created_s": header.now_s,
        "kernel_id": header.kernel_id,
        "notebook": header.notebook,
        "labels": header.labels,
        "python": python_version(),
        "libraries": versions(state.context.kinds),
        "import_path": absolute_paths(sys.path),
        "blobs": blobs.names,
        "patched": blobs.patched,
        "groups": groups,
        "buffers": buffers,
        "definitions": {k[1]: digest(c) for k, c in plan.class_kinds.items()},
        "variables": [_plain(report) for report in state.variables],
        "recompute": {name: list(needs) for name, needs in state.left_out.items()},
    }
    chunks.tell(at_once=True)
    writer.manifest(snapshot_id, sign(manifest, key))
    ended = time.perf_counter()
    return CaptureReport(
        snapshot_id,
        header.name,
        state.variables,
        state.not_saved,
        writer.bytes_written,
        total,
        ended - state.started_s,
        ended - began,
    )


class _Blobs:
    """The blobs of a snapshot: long ones by themselves, the rest together in one."""

    def __init__(self, chunks: ChunkWriter) -> None:
        self.names: list[Names] = []
        self.patched: dict[str, dict[str, Any]] = {}
        self._chunks = chunks
        self._small: list[Buffer] = []
        self._small_bytes = 0
        self._pending: list[tuple[int, list[Any]]] = []

    def memory(self, sources: Mapping[int, Source]) -> list[dict[str, Any]]:
        """Begin to write buffers and return their entries."""
        entries = []
        for index, source in sources.items():
            data = source.read()
            if len(data) < OWN_CHUNK_BYTES:
                place = self._with_others(data)
            else:
                self.names.append([])
                number = len(self.names) - 1
                futures = self._chunks.memory(source, data)
                if source.device:
                    # One copy on the host at a time.
                    self.names[number] = self._chunks.wait(futures)
                else:
                    self._pending.append((number, futures))
                place = {"blob": number, "offset": 0, "nbytes": len(data)}
            entries.append({"index": index, **source.spec, **place})
        return entries

    def stream(self, group: Group) -> dict[str, Any]:
        """Write a group's stream and return its place."""
        stream = group.stream
        if stream.blob is not None:
            self.names.append(stream.blob.close())
            self._chunks.remember("/".join(group.keys[0]), self.names[-1])
            return self._whole(stream.nbytes)
        if stream.nbytes < OWN_BLOB_BYTES:
            return self._with_others(stream.getvalue())
        self._own("/".join(group.keys[0]), stream.parts)
        return self._whole(stream.nbytes)

    def finish(self, entries: list[dict[str, Any]]) -> None:
        """Write what is small, and wait for what is under way."""
        if self._small:
            self._own("", self._small)
            for entry in entries:
                if entry["blob"] == -1:
                    entry["blob"] = len(self.names) - 1
        for number, futures in self._pending:
            self.names[number] = self._chunks.wait(futures)
        # Base and patch are blobs like any other, so that their chunks are known to be in use.
        for entry in self.patched.values():
            for part in ("base", "patch"):
                self.names.append(entry[part])
                entry[part] = len(self.names) - 1

    def _own(self, key: str, parts: list[Buffer]) -> None:
        self.names.append(self._chunks.stream(key, parts))
        if (entry := self._chunks.patched.pop(key, None)) is not None:
            self.patched[str(len(self.names) - 1)] = entry

    def _whole(self, nbytes: int) -> dict[str, Any]:
        return {"blob": len(self.names) - 1, "offset": 0, "nbytes": nbytes}

    def _with_others(self, data: Buffer) -> dict[str, Any]:
        entry = {"blob": -1, "offset": self._small_bytes, "nbytes": len(data)}
        self._small.append(data)
        self._small_bytes += len(data)
        return entry


def _plain(report: VariableReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in _REPORT_FIELDS}


_REPORT_FIELDS = tuple(f.name for f in fields(VariableReport))


def longest_stream() -> int:
    """Return more bytes than any object of this process can need in a stream.

    An object can reduce itself to new objects without end; its stream ends here.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        return SPARE_STREAM_BYTES + 2 * pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 1024 * SPARE_STREAM_BYTES


def _flatten(extra: Mapping[str, Any]) -> Iterator[tuple[Key, Any]]:
    for part, value in extra.items():
        if type(value) is dict:
            yield ("entries", part), list(value)
            for index, (entry, content) in enumerate(value.items()):
                yield ("extra", part, entry_key(entry, index)), content
        else:
            yield ("extra", part), value


def entry_key(entry: Any, index: int) -> str:
    """Return how an entry of the extra state is known: by its name, where it has a plain one."""
    return repr(entry) if type(entry) in (str, int) else f"entry {index}"


def _spoken(key: Key) -> str:
    return key[1] if len(key) == 2 else f"{key[1]}[{key[2]}]"


def _report(name: str, value: Any, plan: Plan, taken: str) -> VariableReport:
    key = ("var", name)
    failure = plan.failures.get(key)
    if failure is not None:
        kind = type_name(value)
        return VariableReport(name, kind, "tombstone", failure.reason, 0, taken, failure.path)
    reason = "; ".join(plan.notes.get(key, ())) or None
    nbytes = plan.nbytes.get(key, 0)
    return VariableReport(name, type_name(value), "saved", reason, nbytes, taken)
