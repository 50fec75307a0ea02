"""Save a namespace as a signed snapshot."""

from __future__ import annotations

import gc
import os
import secrets
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from .buffers import Source
from .digest import digests
from .folder import SnapshotFolder, Writer, validate_name
from .pickling import Context
from .report import CaptureReport, VariableReport, type_name
from .sharing import Key, Plan, make_plan
from .signing import FORMAT, python_version, sign

OWN_BLOB_BYTES = 1 << 20
"""Streams and buffers from this size on get a blob of their own, so that no other shifts them."""

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


def capture(
    namespace: dict[str, Any],
    folder: SnapshotFolder,
    key: bytes,
    *,
    name: str,
    now_s: float,
    kernel_id: str,
    notebook: str | None = None,
    hidden: Collection[str] = (),
    extra: Mapping[str, Any] | None = None,
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

    Raises
    ------
    BadInputError
        If `name` cannot name a snapshot.
    StorageFullError
        If the disk is full; earlier snapshots are whole.
    SnapshotError
        If the folder cannot be written.
    """
    validate_name(name)
    started = time.perf_counter()
    variables = {
        n: v
        for n, v in namespace.items()
        if isinstance(n, str) and n not in hidden and n not in MODULE_NAMES
    }
    values: dict[Key, Any] = {("var", n): v for n, v in variables.items()}
    values.update(_flatten(extra or {}))
    with paused_gc():
        context = Context(namespace)
        plan = make_plan(context, values)
        hashes = digests(namespace, variables)
    reports = tuple(_report(n, value, plan, hashes[n]) for n, value in variables.items())
    created = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_s))
    snapshot_id = f"{created}-{secrets.token_hex(6)}"
    with folder.writing() as writer:
        blobs, groups, buffers = _write(writer, context, plan)
        manifest = {
            "format": FORMAT,
            "id": snapshot_id,
            "name": name,
            "created_s": now_s,
            "kernel_id": kernel_id,
            "notebook": notebook,
            "python": python_version(),
            "import_path": [os.path.abspath(p) for p in sys.path if isinstance(p, str)],
            "blobs": blobs,
            "groups": groups,
            "buffers": buffers,
            "variables": [asdict(report) for report in reports],
        }
        writer.manifest(snapshot_id, sign(manifest, key))
    missing = tuple(
        f"{_spoken(k, values)}: {f.reason}" for k, f in plan.failures.items() if k[0] == "extra"
    )
    seconds = time.perf_counter() - started
    return CaptureReport(snapshot_id, name, reports, missing, writer.bytes_written, seconds)


@contextmanager
def paused_gc() -> Iterator[None]:
    """Keep the collector off: walking millions of new objects again and again costs most."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _flatten(extra: Mapping[str, Any]) -> Iterator[tuple[Key, Any]]:
    for part, value in extra.items():
        if type(value) is dict:
            yield ("entries", part), list(value)
            for index, entry in enumerate(value.values()):
                yield ("extra", part, str(index)), entry
        else:
            yield ("extra", part), value


def _spoken(key: Key, values: Mapping[Key, Any]) -> str:
    if len(key) == 2:
        return key[1]
    return f"{key[1]}[{values['entries', key[1]][int(key[2])]!r}]"


def _report(name: str, value: Any, plan: Plan, digest: str) -> VariableReport:
    key = ("var", name)
    failure = plan.failures.get(key)
    if failure is not None:
        kind = type_name(value)
        return VariableReport(name, kind, "tombstone", failure.reason, 0, digest, failure.path)
    reason = "; ".join(plan.notes.get(key, ())) or None
    return VariableReport(name, type_name(value), "saved", reason, plan.nbytes.get(key, 0), digest)


def _write(
    writer: Writer, context: Context, plan: Plan
) -> tuple[list[Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Write streams and memory; return blobs, groups and buffers as the manifest has them."""
    blobs: list[Any] = []
    small = bytearray()
    placed_small: list[dict[str, Any]] = []

    def place(data: memoryview) -> dict[str, Any]:
        if len(data) >= OWN_BLOB_BYTES:
            blobs.append(writer.blob(data))
            return {"blob": len(blobs) - 1, "offset": 0, "nbytes": len(data)}
        entry = {"blob": -1, "offset": len(small), "nbytes": len(data)}
        placed_small.append(entry)
        small.extend(data)
        return entry

    groups = [{"keys": [list(k) for k in g.keys], **place(g.stream)} for g in plan.groups]
    numbers = sorted({index for group in plan.groups for index in group.buffers})
    sources: list[Source] = context.buffers.sources
    buffers = []
    for index in numbers:
        source = sources[index]
        buffers.append({"index": index, **source.spec, **place(source.read())})
    if placed_small:
        blobs.append(writer.blob(memoryview(small)))
        for entry in (*groups, *buffers):
            if entry["blob"] == -1:
                entry["blob"] = len(blobs) - 1
    return blobs, groups, buffers
