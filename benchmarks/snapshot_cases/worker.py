"""One measurement, in a process of its own whose `__main__` is the session."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from typing import Any

from . import kishu_peer
from .engine import is_tombstone, largest_group
from .measure import fsync_path, measured, resident_mb, settle, settle_with_room, timed, trim
from .methods import METHODS
from .pause import pauses
from .session import Session, evaluated, load

MARK = "@@"

RAW_BYTES = 8 << 20
"""The plain write is fastest in calls of this length (measured from 256 KiB to 64 MiB)."""


def main() -> None:
    """Run ``PHASE CASE METHOD SCALE PATH`` and print its findings as one line of JSON."""
    phase, case, method, scale, path = sys.argv[1:6]
    del sys.argv[1:]
    namespace = sys.modules["__main__"].__dict__
    session = load(case, float(scale))
    for library in session.libraries if phase != "raw" else ():
        importlib.import_module(library)
    try:
        found = _PHASES[phase](session, method, path, namespace)
    except BaseException as error:
        # Also what is no Exception: a peer that ends the process is a peer that fails.
        found = {"failure": f"{type(error).__name__}: {error}"[:300]}
    print(MARK + json.dumps(found), flush=True)
    # Without what sessions leave at exit: threads, and gigabytes freed one by one.
    os._exit(0)


def _classes(session: Session) -> str:
    if session.classes is None:
        return ""
    return inspect.getsource(importlib.import_module(f"snapshot_cases.classes.{session.classes}"))


def build(session: Session, namespace: dict[str, Any], *, importable: bool = False) -> None:
    """Run the session's cells in `__main__`."""
    if session.classes is not None and importable:
        module = importlib.import_module(f"snapshot_cases.classes.{session.classes}")
        kinds = {n: v for n, v in vars(module).items() if inspect.isclass(v)}
        namespace.update(kinds)
    elif session.classes is not None:
        _run(_classes(session).partition('"""\n')[2], namespace)
    for cell in session.cells:
        _run(cell, namespace)


def _run(cell: str, namespace: dict[str, Any]) -> None:
    exec(compile(cell, "<cell>", "exec"), namespace)


def _save(session: Session, name: str, path: str, namespace: dict[str, Any]) -> dict[str, Any]:
    if name == "kishu":
        found = kishu_peer.save(session, _classes(session), path)
        return found | {"values": evaluated(session.values(found.pop("namespace")))}
    method = METHODS[name]
    method.prepare()
    trim()
    empty = resident_mb()
    build(session, namespace, importable=method.importable)
    trim()
    found = {"state_mb": resident_mb() - empty}
    steps = [("save", None)]
    steps += [("no_change", None)] * method.incremental
    steps += [(change.label, change.cell) for change in session.changes]
    for label, cell in steps:
        if cell is not None:
            _run(cell, namespace)
        if not method.incremental and os.path.exists(path):
            os.unlink(path)
        settle_with_room(os.path.dirname(path), int(found["state_mb"] * 1.5e6))
        with measured() as figures:
            said = method.save(namespace, path)
        found[f"{label}_s"] = figures.seconds
        found |= {f"{label}_{metric}": value for metric, value in said.items()}
        if label == "save":
            found["save_extra_mb"] = figures.extra_mb
            if name == "snapshot":
                found["largest_group_bytes"] = largest_group(path)
    return found | {"values": evaluated(session.values(namespace))}


def _once(session: Session, name: str, path: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Save, and nothing else: what is under `path` is what one save writes."""
    build(session, namespace)
    return {**METHODS[name].save(namespace, path)}


def _load(session: Session, name: str, path: str, namespace: dict[str, Any]) -> dict[str, Any]:
    target = namespace
    if name == "kishu":
        work, target = kishu_peer.load(path)
    else:
        method = METHODS[name]
        method.prepare()

        def work() -> None:
            method.load(path, namespace)

    settle()
    trim()
    with measured() as figures:
        work()
    found: dict[str, Any] = {
        "restore_s": figures.seconds,
        "restore_extra_mb": figures.extra_mb,
        "values": evaluated(session.values(target)),
    }
    try:
        found["aliases"] = evaluated(
            {k: lambda thunk=v: bool(thunk()) for k, v in session.aliases(target).items()}
        )
    except Exception as error:
        found["aliases"] = {"all": ["failed", f"{type(error).__name__}: {error}"[:200]]}
    found["accounted"] = {name: _outcome(target, name) for name in session.doomed}
    return found


def _outcome(namespace: dict[str, Any], name: str) -> str:
    """Return ``missing``, ``tombstone``, or the type of what came back."""
    if name not in namespace:
        return "missing"
    value = namespace[name]
    return "tombstone" if is_tombstone(value) else type(value).__name__


def _raw(_session: Session, _name: str, path: str, _namespace: dict[str, Any]) -> dict[str, Any]:
    """Write once more, to one file, the bytes that the engine wrote under `path`."""
    pieces = []
    for folder, _, files in os.walk(path):
        for file in files:
            whole = os.path.join(folder, file)
            piece = bytearray(os.path.getsize(whole))
            with open(whole, "rb", buffering=0) as source:
                done = 0
                while done < len(piece):
                    done += source.readinto(memoryview(piece)[done:]) or 0
            pieces.append(memoryview(piece))
    copy = f"{path}.raw"
    nbytes = sum(len(piece) for piece in pieces)
    settle_with_room(os.path.dirname(path), nbytes * 3 // 2)

    def write() -> None:
        fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for piece in pieces:
            done = 0
            while done < len(piece):
                done += os.write(fd, piece[done : done + RAW_BYTES])
        os.fsync(fd)
        os.close(fd)
        fsync_path(os.path.dirname(copy))

    seconds = timed(write)
    os.unlink(copy)
    from jupyter_gpu_predict.snapshots.chunks import chunk_name

    def hash_pass() -> None:
        for piece in pieces:
            for start in range(0, len(piece), 4 << 20):
                chunk_name(piece[start : start + (4 << 20)])

    hash_pass()
    return {"save_s": seconds, "save_bytes": nbytes, "hash_pass_s": timed(hash_pass)}


def _pause(session: Session, name: str, path: str, namespace: dict[str, Any]) -> dict[str, Any]:
    build(session, namespace)
    return pauses(session.changes[0], namespace, path, rounds=int(name), run=_run)


_PHASES = {"once": _once, "save": _save, "load": _load, "raw": _raw, "pause": _pause}
