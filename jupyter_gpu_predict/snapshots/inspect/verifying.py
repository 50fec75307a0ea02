"""The task of the fresh process: check every chunk, load, compare, and say or keep the outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import (
    GpuPredictError,
    SnapshotDamagedError,
    SnapshotError,
    SnapshotIncompleteError,
    SnapshotVersionError,
)
from ..signing import python_version
from ..stores import SnapshotStore, open_store
from .memory import available_bytes
from .opened import Opened, Progress
from .report import VerifyReport, keep_report

STATE_FACTOR = 1.3
STREAM_FACTOR = 30
"""Small objects take many times the bytes of their stream, and are held in two forms."""


def check(
    store: SnapshotStore, snapshot_id: str, key: bytes, progress: Progress | None = None
) -> VerifyReport:
    """Verify a snapshot in this process, which has nothing of its own to lose.

    Raises
    ------
    SnapshotError
        If there is too little memory, or the store does not answer.
    SnapshotRefusedError
        If the snapshot is not signed with `key`, or was taken with another Python than this.
    """
    from .recheck import Findings, recheck

    started = time.perf_counter()
    opened = Opened(store, snapshot_id, key)
    if opened.manifest["python"] != python_version():
        raise SnapshotVersionError(
            f"snapshot {snapshot_id} was taken with Python {opened.manifest['python']}, this "
            f"interpreter is {python_version()}; verify it with one of the same version"
        )
    guard_memory(opened)
    total = opened.total_bytes * 2
    if progress is not None:
        progress(0, total)

    def told(offset: int) -> Progress | None:
        return None if progress is None else lambda done, _: progress(offset + done, total)

    nbytes = 0
    try:
        nbytes = opened.check_chunks(told(0))
        found = recheck(store, snapshot_id, key, told(opened.total_bytes))
    except (SnapshotDamagedError, SnapshotIncompleteError) as error:
        found = Findings((), (str(error),), ())
    return VerifyReport(
        snapshot_id=snapshot_id,
        verified=not found.problems
        and all(v.status in ("same", "not saved") for v in found.variables),
        variables=found.variables,
        problems=found.problems,
        differences=found.differences,
        bytes_read=nbytes,
        seconds=time.perf_counter() - started,
        checked_s=time.time(),
        python=python_version(),
    )


def guard_memory(opened: Opened) -> None:
    """Refuse where the state would not fit into memory a second time.

    Raises
    ------
    SnapshotError
        If less memory is free than loading and comparing takes.
    """
    streams = sum(group["nbytes"] for group in opened.manifest["groups"])
    needed = int(opened.total_bytes * STATE_FACTOR) + streams * STREAM_FACTOR
    free = available_bytes()
    if free is not None and free < needed:
        raise SnapshotError(
            f"verifying snapshot {opened.snapshot_id} takes about {needed >> 20} MiB of memory "
            f"and {free >> 20} MiB are free; close other kernels or verify it later"
        )


def check_and_answer(task: Mapping[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Verify, telling how far it is, and answer with the report or the error."""
    told_at = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= 0.1:
            told_at = now
            answer({"done": done, "total": total})

    try:
        report = check(open_store(task["store"]), task["id"], bytes.fromhex(task["key"]), progress)
    except GpuPredictError as error:
        answer({"error": type(error).__name__, "message": str(error)})
    except Exception as error:
        answer({"error": "SnapshotError", "message": f"{type(error).__name__}: {error}"})
    else:
        answer({"report": report.to_dict()})


def check_and_keep(task: Mapping[str, Any]) -> None:
    """Verify and keep the report beside the snapshot; nothing is kept of what cannot be checked."""
    with contextlib.suppress(GpuPredictError):
        store = open_store(task["store"])
        key = bytes.fromhex(task["key"])
        keep_report(store, check(store, task["id"], key), key)
