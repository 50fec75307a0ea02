"""Bring a snapshot back into a namespace."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import BadInputError
from .capture import entry_key
from .collector import paused_gc
from .digest import digest, digests
from .forgiving import load_forgivingly
from .grouping import Key
from .libraries import absolute_paths, differences
from .omission import CELLS, needed
from .reading import BlobReader
from .rebuild import Rebuild, SnapshotUnpickler
from .report import RestoredVariable, RestoreReport
from .signing import verify
from .stores import SnapshotStore
from .tombstone import Tombstone
from .transfer import Progress


def restore(
    store: SnapshotStore,
    snapshot_id: str,
    key: bytes,
    namespace: dict[str, Any],
    *,
    only: Collection[str] | None = None,
    check: bool = False,
    with_cells: bool = False,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> RestoreReport:
    """Load a snapshot's variables into `namespace`.

    Nothing is unpickled before the signature and the hash of every chunk were found right. A
    variable that was not saved or cannot be loaded here becomes a `Tombstone`. If this raises,
    the namespace is as it was.

    Parameters
    ----------
    only
        Names of the variables to load; all without it. What they share among each other stays
        shared, and instances of a class that the namespace still has in the same form get that
        class.
    check
        Compare the digest of each loaded variable with the one taken when it was saved, where one
        was.
    with_cells
        Besides `only`, load the extra state ``"cells"`` and the variables that these need, so that
        what was left out can be made again.
    progress
        Called with bytes read and bytes in all, at most ten times a second.
    cancelled
        Asked between chunks; a true answer ends the restore.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    BadInputError
        If `only` names a variable that the snapshot does not have.
    SnapshotRefusedError
        If it is unsigned, altered, incomplete, or of another format or Python version.
    SnapshotCancelledError
        If it was cancelled.
    SnapshotError
        If it cannot be read.
    """
    started = time.perf_counter()
    manifest = verify(store.read(snapshot_id), key, snapshot_id)
    wanted = _wanted(manifest, only)
    if only is not None and with_cells:
        wanted |= frozenset(needed(manifest, wanted))
    numbers = _groups(manifest, wanted, with_cells=with_cells)
    blobs = BlobReader(store, manifest, numbers, progress=progress, cancelled=cancelled)
    read_s = time.perf_counter() - started
    former = dict(namespace)
    rebuild = Rebuild(namespace, blobs.owners, blobs.read_again)
    if only is not None:
        rebuild.present = _present(namespace, manifest["definitions"])
    chosen = [v for v in manifest["variables"] if v["name"] in wanted]
    try:
        with paused_gc(), _import_path(manifest["import_path"]):
            loaded, faults = _load(manifest, numbers, blobs, rebuild, wanted)
            found = {k[1]: v for k, v in loaded.items() if k[0] == "var" and k[1] in wanted}
            known = [v["name"] for v in chosen if v["digest"] and v["name"] in found]
            hashes = digests(namespace, known) if check else {}
            reports = tuple(_settle(namespace, v, found, faults, hashes) for v in chosen)
    except BaseException:
        for name in namespace.keys() - former.keys():
            del namespace[name]
        namespace.update(former)
        raise
    extra, missing = _extra(loaded, faults)
    return RestoreReport(
        snapshot_id,
        manifest["name"],
        reports,
        extra,
        missing,
        blobs.total_bytes,
        time.perf_counter() - started,
        differences(manifest["libraries"]),
        tuple(name for name in manifest.get("recompute", ()) if name in wanted),
        read_s,
    )


def _wanted(manifest: Mapping[str, Any], only: Collection[str] | None) -> frozenset[str]:
    names = frozenset(v["name"] for v in manifest["variables"])
    if only is None:
        return names
    unknown = [name for name in only if name not in names]
    if unknown:
        raise BadInputError(
            f"snapshot {manifest['name']!r} has no variable {', '.join(map(repr, unknown))}; "
            "nothing was restored"
        )
    return frozenset(only)


def _groups(manifest: Mapping[str, Any], wanted: frozenset[str], *, with_cells: bool) -> list[int]:
    """Return the numbers of the groups that hold what is wanted, and of the classes they need."""
    cells = ["extra", CELLS] if with_cells else None
    groups = manifest["groups"]
    everything = len(wanted) == len(manifest["variables"])
    place = {k[1]: n for n, g in enumerate(groups) for k in g["keys"] if k[0] == "class"}
    needed: set[int] = set()
    waiting = [
        number
        for number, group in enumerate(groups)
        if everything
        or any((k[0] == "var" and k[1] in wanted) or k == cells for k in group["keys"])
    ]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            classes = (str(index) for index in groups[number]["classes"])
            waiting += [place[index] for index in classes if index in place]
    return sorted(needed)


def _present(namespace: Mapping[str, Any], definitions: Mapping[str, str]) -> dict[int, type]:
    """Return the classes of the namespace that are those of the snapshot, by their number."""
    found = {digest(v): v for v in list(namespace.values()) if isinstance(v, type)}
    return {int(number): found[d] for number, d in definitions.items() if d in found}


def _load(
    manifest: Mapping[str, Any],
    numbers: list[int],
    blobs: BlobReader,
    rebuild: Rebuild,
    wanted: frozenset[str],
) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Unpickle the streams; of one that fails, only what has to do with the fault is lost."""
    loaded: dict[Key, Any] = {}
    faults: dict[Key, str] = {}
    for number in numbers:
        group = manifest["groups"][number]
        keys: list[Key] = [tuple(k) for k in group["keys"]]
        exported = [rebuild.buffers.get(index) for index in group["out_of_band"]]
        values: dict[Key, Any] = {}
        try:
            unpickler = SnapshotUnpickler(blobs.stream(group), rebuild, exported)
            for key in keys:
                values[key] = unpickler.load()
                if key[0] == "class":
                    values[key] = rebuild.define(int(key[1]), values[key])
        except MemoryError:
            raise
        except Exception:
            # Its classes are made once more, and the instances are of those.
            for index in (int(key[1]) for key in keys if key[0] == "class"):
                rebuild.definitions.pop(index, None)
            values, reasons = load_forgivingly(blobs.stream(group), keys, rebuild, exported)
            faults.update(reasons)
        loaded.update(values)
        # At once, so that what is loaded later can call functions that use it.
        rebuild.namespace.update(
            {k[1]: v for k, v in values.items() if k[0] == "var" and k[1] in wanted}
        )
    return loaded, faults


def _settle(
    namespace: dict[str, Any],
    saved: Mapping[str, Any],
    found: Mapping[str, Any],
    faults: Mapping[Key, str],
    hashes: Mapping[str, str],
) -> RestoredVariable:
    name, kind = saved["name"], saved["type_name"]
    if name not in found:
        reason = saved["reason"] or "it could not be saved"
        if saved["status"] != "tombstone":
            reason = faults.get(("var", name), "its stream is missing")
        namespace[name] = Tombstone(name, kind, reason, saved["path"])
        return RestoredVariable(name, kind, "tombstone", reason, saved["digest"] or None)
    taken = hashes.get(name)
    if taken is not None and taken != saved["digest"]:
        reason = "its value differs from the one that was saved"
        return RestoredVariable(name, kind, "mismatch", reason, taken)
    return RestoredVariable(name, kind, "restored", saved["reason"], taken)


def _extra(
    loaded: Mapping[Key, Any], faults: Mapping[Key, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    extra: dict[str, Any] = {}
    for key, value in loaded.items():
        if key[0] == "entries":
            entries = extra[key[1]] = {}
            for index, entry in enumerate(value):
                full = ("extra", key[1], entry_key(entry, index))
                if full in loaded:
                    entries[entry] = loaded[full]
        elif key[0] == "extra" and len(key) == 2:
            extra[key[1]] = value
    missing = tuple(f"{'/'.join(k[1:])}: {v}" for k, v in faults.items() if k[0] == "extra")
    return extra, missing


@contextmanager
def _import_path(saved: list[str]) -> Iterator[None]:
    """Let modules be found where the saved session found them, for as long as it is loaded."""
    known = set(absolute_paths(sys.path))
    added = [p for p in saved if p not in known]
    sys.path.extend(added)
    try:
        yield
    finally:
        for path in added:
            if path in sys.path:
                sys.path.remove(path)
