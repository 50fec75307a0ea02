"""`verify`: load a snapshot in a fresh process and see whether the same comes back."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ... import errors
from ...errors import SnapshotCancelledError, SnapshotError
from ..signing import python_version
from ..stores import SnapshotStore
from .opened import Cancelled, Opened, Progress
from .report import VerifiedVariable, VerifyReport, keep_report, read_report
from .verifying import guard_memory

__all__ = ["VerifiedVariable", "VerifyReport", "read_report", "verify", "verify_in_background"]

_SCRIPT = Path(__file__).with_name("verify_process.py")
_ASK_S = 0.2
_NICE = 10
_NICE_IN_BACKGROUND = 19


def verify(
    store: SnapshotStore,
    snapshot_id: str,
    key: bytes,
    *,
    python: str = sys.executable,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> VerifyReport:
    """Load a snapshot in a fresh process and compare what comes back with what was saved.

    The signature and every chunk are checked first. The process then pickles what it has loaded
    with the same engine; values, identities, aliases and views must be those of the snapshot,
    whatever the order of sets and the numbering. Digests taken when it was saved are compared too.
    The outcome is kept beside the snapshot as a signed note.

    Parameters
    ----------
    python
        The interpreter that the session's kernel runs; this package need not be installed there.
    progress
        Called with bytes done and bytes in all; the state counts twice, being read and loaded.
    cancelled
        Asked now and then; a true answer ends the process.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    SnapshotRefusedError
        If it is not signed with `key`, is of another format, or of another Python than `python`.
    SnapshotCancelledError
        If it was cancelled; no note is kept.
    SnapshotError
        If memory is too short, the store does not answer or the process cannot be started.
    """
    guard_memory(Opened(store, snapshot_id, key))
    started = time.perf_counter()
    process = _start(store, snapshot_id, key, python, nice=_NICE, keep=False)
    try:
        answer, began = _listen(process, snapshot_id, progress, cancelled)
        process.wait()
    finally:
        _end(process)
    if answer is None:
        seconds = time.perf_counter() - started
        report = _report_death(snapshot_id, process.returncode, seconds, began=began)
    elif "error" in answer:
        kind = getattr(errors, answer["error"], SnapshotError)
        raise kind(answer["message"])
    else:
        report = VerifyReport.from_dict(answer["report"])
    keep_report(store, report, key)
    return report


def verify_in_background(
    store: SnapshotStore, snapshot_id: str, key: bytes, *, python: str = sys.executable
) -> subprocess.Popen[bytes]:
    """Start `verify` in a process of the lowest priority that keeps its report by itself.

    Returns the process, to be polled so that it can be reaped, or ended by its process group. If
    it is ended, or the snapshot is deleted meanwhile, no note is kept.

    Raises
    ------
    SnapshotError
        If `python` cannot be started.
    """
    process = _start(store, snapshot_id, key, python, nice=_NICE_IN_BACKGROUND, keep=True)
    if process.stdout is not None:
        process.stdout.close()
    return process


def _start(
    store: SnapshotStore, snapshot_id: str, key: bytes, python: str, *, nice: int, keep: bool
) -> subprocess.Popen[bytes]:
    task = {"store": store.url, "id": snapshot_id, "key": key.hex(), "nice": nice, "keep": keep}
    command = [python, "-W", "ignore", os.fspath(_SCRIPT)]
    ionice = shutil.which("ionice") if keep else None
    if ionice is not None:
        command = [ionice, "-c3", *command]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Loading takes the GPU's memory into the host's; the GPU itself belongs to others.
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        )
    except OSError as error:
        raise SnapshotError(
            f"{python} cannot be started to verify snapshot {snapshot_id}: {error}"
        ) from error
    task_pipe: Any = process.stdin
    with contextlib.suppress(BrokenPipeError):
        task_pipe.write(json.dumps(task).encode())
    with contextlib.suppress(BrokenPipeError):
        task_pipe.close()
    return process


def _listen(
    process: subprocess.Popen[bytes],
    snapshot_id: str,
    progress: Progress | None,
    cancelled: Cancelled | None,
) -> tuple[dict[str, Any] | None, bool]:
    """Return the process's answer, ``None`` if it ended without one, and whether it had begun."""
    answers: Any = process.stdout
    rest = b""
    began = False
    while True:
        if cancelled is not None and cancelled():
            raise SnapshotCancelledError(
                f"the verification of snapshot {snapshot_id} was cancelled"
            )
        if not select.select([answers], [], [], _ASK_S)[0]:
            continue
        data = os.read(answers.fileno(), 1 << 16)
        if not data:
            return None, began
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            if "done" not in answer:
                return answer, began
            began = True
            if progress is not None:
                progress(answer["done"], answer["total"])


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _report_death(snapshot_id: str, code: int, seconds: float, *, began: bool) -> VerifyReport:
    """Return the report on a snapshot whose loading ended the process.

    Raises
    ------
    SnapshotError
        If the process was ended from outside, which says nothing of the snapshot.
    """
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        raise SnapshotError(
            f"the process that verified snapshot {snapshot_id} was ended by signal {-code}, "
            "perhaps for want of memory; verify it again"
        )
    if not began:
        raise SnapshotError(
            f"the process that was to verify snapshot {snapshot_id} ended with status {code} "
            "before it loaded anything; see whether its interpreter works"
        )
    how = f"signal {-code}" if code < 0 else f"status {code}"
    problem = f"loading it ended the process with {how}"
    return VerifyReport(
        snapshot_id, False, (), (problem,), (), 0, seconds, time.time(), python_version()
    )
