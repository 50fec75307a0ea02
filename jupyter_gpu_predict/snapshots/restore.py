"""Bring a snapshot back into a namespace."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import SnapshotError
from .buffers import allocate
from .capture import paused_gc
from .digest import digests
from .folder import SnapshotFolder
from .rebuild import Rebuild, SnapshotUnpickler
from .report import RestoredVariable, RestoreReport
from .sharing import Key
from .signing import read_blob, verify
from .tombstone import Tombstone


def restore(
    folder: SnapshotFolder,
    snapshot_id: str,
    key: bytes,
    namespace: dict[str, Any],
    *,
    check: bool = True,
) -> RestoreReport:
    """Load a snapshot's variables into `namespace`.

    Nothing is unpickled before the signature and the hash of every chunk were found right. A
    variable that was not saved or cannot be loaded here becomes a `Tombstone`. If this raises,
    the namespace is as it was.

    Parameters
    ----------
    check
        Compare the digest of each loaded variable with the one taken when it was saved.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    SnapshotRefusedError
        If it is unsigned, altered, incomplete, or of another format or Python version.
    SnapshotError
        If it cannot be read.
    """
    started = time.perf_counter()
    manifest = verify(folder.read(snapshot_id), key, snapshot_id)
    blobs, owners = _read(folder, manifest, snapshot_id)
    former = dict(namespace)
    rebuild = Rebuild(namespace, owners)
    try:
        with paused_gc(), _import_path(manifest["import_path"]):
            loaded, faults = _load(manifest, blobs, rebuild)
            found = {k[1]: v for k, v in loaded.items() if k[0] == "var"}
            hashes = digests(namespace, found) if check else {}
            reports = tuple(
                _settle(namespace, v, found, faults, hashes, check=check)
                for v in manifest["variables"]
            )
    except BaseException:
        for name in namespace.keys() - former.keys():
            del namespace[name]
        namespace.update(former)
        raise
    extra, missing = _extra(loaded, faults)
    nbytes = sum(chunk["nbytes"] for blob in manifest["blobs"] for chunk in blob)
    seconds = time.perf_counter() - started
    return RestoreReport(snapshot_id, manifest["name"], reports, extra, missing, nbytes, seconds)


def _read(
    folder: SnapshotFolder, manifest: Mapping[str, Any], snapshot_id: str
) -> tuple[dict[int, memoryview], dict[int, Any]]:
    """Read and check every blob; return the memory of blobs and the owners of buffers.

    A buffer that fills its blob is read straight into the memory where it will live.
    """
    owners: dict[int, Any] = {}
    memory: dict[int, memoryview] = {}
    lengths = [sum(chunk["nbytes"] for chunk in blob) for blob in manifest["blobs"]]
    targets: list[tuple[memoryview, Mapping[str, Any]]] = []
    for buffer in manifest["buffers"]:
        try:
            owner, target = allocate(buffer)
        except SnapshotError:
            # Without the library the streams that need it fail by themselves and say so.
            continue
        owners[buffer["index"]] = owner
        if len(target) == lengths[buffer["blob"]] and buffer["offset"] == 0:
            memory[buffer["blob"]] = target
        else:
            targets.append((target, buffer))
    for number, chunks in enumerate(manifest["blobs"]):
        view = memory.setdefault(number, memoryview(bytearray(lengths[number])))
        read_blob(folder, chunks, view, snapshot_id)
    for target, buffer in targets:
        target[:] = _part(memory, buffer)
    return memory, owners


def _part(memory: Mapping[int, memoryview], entry: Mapping[str, Any]) -> memoryview:
    start = entry["offset"]
    return memory[entry["blob"]][start : start + entry["nbytes"]]


def _load(
    manifest: Mapping[str, Any], memory: Mapping[int, memoryview], rebuild: Rebuild
) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Unpickle every stream; one that fails keeps none of its variables and spoils no other."""
    loaded: dict[Key, Any] = {}
    faults: dict[Key, str] = {}
    for group in manifest["groups"]:
        keys: list[Key] = [tuple(k) for k in group["keys"]]
        values: dict[Key, Any] = {}
        try:
            unpickler = SnapshotUnpickler(_part(memory, group), rebuild)
            for key in keys:
                values[key] = unpickler.load()
                if key[0] == "class":
                    rebuild.definitions[int(key[1])] = values[key]
        except MemoryError:
            raise
        except Exception as error:
            faults.update(dict.fromkeys(keys, f"it could not be loaded here: {_said(error)}"))
            for key in keys:
                if key[0] == "class":
                    rebuild.faults[int(key[1])] = _said(error)
            continue
        loaded.update(values)
        # At once, so that what is loaded later can call functions that use it.
        rebuild.namespace.update({k[1]: v for k, v in values.items() if k[0] == "var"})
    return loaded, faults


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _settle(
    namespace: dict[str, Any],
    saved: Mapping[str, Any],
    found: Mapping[str, Any],
    faults: Mapping[Key, str],
    hashes: Mapping[str, str],
    *,
    check: bool,
) -> RestoredVariable:
    name, kind = saved["name"], saved["type_name"]
    if name not in found:
        reason = saved["reason"] or faults.get(("var", name), "its stream is missing")
        if saved["status"] != "tombstone":
            reason = faults.get(("var", name), "its stream is missing")
        namespace[name] = Tombstone(name, kind, reason, saved["path"])
        return RestoredVariable(name, kind, "tombstone", reason, None)
    digest = hashes.get(name)
    if check and digest != saved["digest"]:
        reason = "its value differs from the one that was saved"
        return RestoredVariable(name, kind, "mismatch", reason, digest)
    return RestoredVariable(name, kind, "restored", saved["reason"], digest)


def _extra(
    loaded: Mapping[Key, Any], faults: Mapping[Key, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    extra: dict[str, Any] = {}
    for key, value in loaded.items():
        if key[0] == "entries":
            entries = extra[key[1]] = {}
            for index, entry in enumerate(value):
                full = ("extra", key[1], str(index))
                if full in loaded:
                    entries[entry] = loaded[full]
        elif key[0] == "extra" and len(key) == 2:
            extra[key[1]] = value
    missing = tuple(f"{'/'.join(k[1:])}: {v}" for k, v in faults.items() if k[0] == "extra")
    return extra, missing


@contextmanager
def _import_path(saved: list[str]) -> Iterator[None]:
    """Let modules be found where the saved session found them, for as long as it is loaded."""
    known = {os.path.abspath(p) for p in sys.path if isinstance(p, str)}
    added = [p for p in saved if p not in known]
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            if path in sys.path:
                sys.path.remove(path)
