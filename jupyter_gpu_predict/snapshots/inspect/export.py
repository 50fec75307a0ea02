"""`export`: a snapshot's variables as files that other programs read."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import BadInputError, SnapshotError, StorageFullError
from ..restore import restore
from ..stores import SnapshotStore
from .describe import Describer, class_names
from .opened import Cancelled, Opened, Progress
from .show import check_names, session_classes
from .tensor_file import find_tensors, write_tensors

_TRIED_BYTES = 64 << 20

FORMATS = ("safetensors", "arrow", "dill")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The files written, and a sentence for all that was left out or copied."""

    files: tuple[str, ...]
    bytes_written: int
    notes: tuple[str, ...]


def export(
    store: SnapshotStore,
    snapshot_id: str,
    key: bytes,
    output: str | os.PathLike[str],
    *,
    format: str,  # noqa: A002
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> ExportReport:
    """Write variables of a snapshot to files.

    ``"safetensors"``
        Arrays, tensors and all that are found inside variables, in one file. Nothing is
        unpickled: they are described by the streams, and their bytes are copied. Needs no
        library, except numpy for views that are not contiguous.
    ``"arrow"``
        Each data frame or table of pandas, polars or pyarrow as an Arrow IPC file of its own in
        the folder `output`. The variables asked for are loaded, which runs code of their
        libraries; needs pyarrow and what the frames are made of.
    ``"dill"``
        A dictionary of the variables in one dill file, for ``dill.load``. The variables asked for
        are loaded, which runs code of theirs; needs dill and their libraries. What dill cannot
        save is left out and named; views and aliases are kept as far as dill keeps them.

    In every case the signature must hold first, and each chunk's hash before it is used. A file
    appears when it is complete, in the place of any former one.

    Parameters
    ----------
    output
        The file, or for ``"arrow"`` the folder, which is made if need be.
    only
        Names of the variables; all without it.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    BadInputError
        If the format is unknown, `only` names what is not there, or nothing can be written.
    SnapshotRefusedError
        If the snapshot is not signed with `key`, or damaged.
    SnapshotError
        If a library is missing or the file cannot be written.
    """
    ways: dict[str, Callable[[_Task], ExportReport]] = {
        "safetensors": _export_tensors,
        "arrow": _export_frames,
        "dill": _export_dill,
    }
    if format not in ways:
        raise BadInputError(f"format {format!r} is unknown; use one of {', '.join(FORMATS)}")
    opened = Opened(store, snapshot_id, key)
    names = check_names(opened, only)
    return ways[format](_Task(opened, key, names, Path(output), progress, cancelled))


@dataclass(frozen=True, slots=True)
class _Task:
    """What is to be exported, and where to."""

    opened: Opened
    key: bytes
    names: list[str]
    output: Path
    progress: Progress | None
    cancelled: Cancelled | None


def _export_tensors(task: _Task) -> ExportReport:
    opened = task.opened
    notes = []
    roots = {}
    for name in task.names:
        if opened.group_of(("var", name)) is None:
            notes.append(f"{name} was left out: {opened.variables[name]['reason']}")
        else:
            roots[name] = opened.value(("var", name))
    found = find_tensors(Describer(opened.buffers, class_names(session_classes(opened))), roots)
    if found.without:
        notes.append(f"left out for want of arrays and tensors: {', '.join(found.without)}")
    notes += found.notes
    notes += [f"{name} is the same as {other}" for name, other in found.aliases.items()]
    if not found.tensors:
        raise BadInputError(
            f"snapshot {opened.snapshot_id} has no arrays or tensors in what was asked for; "
            "export it with --format dill"
        )
    with _new_file(task.output) as file:
        count = write_tensors(opened, found, file, task.progress, task.cancelled)
    return ExportReport((str(task.output),), count, tuple(notes))


def _export_frames(task: _Task) -> ExportReport:
    try:
        pa: Any = importlib.import_module("pyarrow")
        importlib.import_module("pyarrow.ipc")
    except ImportError as error:
        raise SnapshotError(
            f"Arrow files cannot be written: {error}; install the package pyarrow"
        ) from error
    frames = [n for n in task.names if _is_frame(task.opened.variables[n]["type_name"])]
    others = [n for n in task.names if n not in frames]
    notes = [f"left out as no data frames or tables: {', '.join(others)}"] if others else []
    files: list[str] = []
    count = 0
    with _loaded(task, frames) as (namespace, faults):
        notes += [f"{name} was left out: {reason}" for name, reason in faults.items()]
        for name in frames:
            if name in faults:
                continue
            task.opened.ask(task.cancelled, "export")
            try:
                table = _as_table(pa, namespace[name])
            except Exception as error:
                notes.append(f"{name} was left out: {type(error).__name__}: {error}")
                continue
            task.output.mkdir(parents=True, exist_ok=True)
            target = task.output / f"{_file_name(name)}.arrow"
            with _new_file(target) as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            files.append(str(target))
            count += target.stat().st_size
    if not files:
        said = "; ".join(notes[:3])
        raise BadInputError(
            f"snapshot {task.opened.snapshot_id} has no data frame that can be written ({said}); "
            "export it with --format dill"
        )
    return ExportReport(tuple(files), count, tuple(notes))


def _export_dill(task: _Task) -> ExportReport:
    try:
        import dill
    except ImportError as error:
        raise SnapshotError(
            f"dill files cannot be written: {error}; install the package dill"
        ) from error
    notes: list[str] = []
    with _loaded(task, task.names) as (namespace, faults):
        notes += [f"{name} was left out: {reason}" for name, reason in faults.items()]
        wanted = {name: namespace[name] for name in task.names if name not in faults}
        for name in list(wanted):
            task.opened.ask(task.cancelled, "export")
            try:
                _try_dill(dill, wanted[name], task.opened.variables[name]["nbytes"])
            except Exception as error:
                notes.append(f"{name} was left out: {type(error).__name__}: {error}")
                del wanted[name]
        with _new_file(task.output) as file:
            dill.dump(wanted, file, recurse=True)
    return ExportReport((str(task.output),), task.output.stat().st_size, tuple(notes))


def _try_dill(dill: Any, value: Any, nbytes: int) -> None:
    """Save a value and load it again as another process would; raises what dill raises.

    dill saves some things, such as members of the session's enumerations, that it cannot load.
    """
    if nbytes > _TRIED_BYTES:
        with open(os.devnull, "wb") as nowhere:
            dill.dump(value, nowhere, recurse=True)
        return
    data = dill.dumps(value, recurse=True)
    with _main_module(types.ModuleType("__main__")):
        dill.loads(data)


@contextlib.contextmanager
def _main_module(main: types.ModuleType) -> Iterator[None]:
    """Let `main` be what dill and the classes of the session look for under this name."""
    former = sys.modules["__main__"]
    sys.modules["__main__"] = main
    try:
        yield
    finally:
        sys.modules["__main__"] = former


@contextlib.contextmanager
def _loaded(task: _Task, names: list[str]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Load variables into a ``__main__`` of their own; yield it and why others are missing."""
    opened = task.opened
    main = types.ModuleType("__main__")
    path = list(sys.path)
    sys.path += [p for p in opened.manifest["import_path"] if p not in path]
    try:
        with _main_module(main):
            report = restore(
                opened.store,
                opened.snapshot_id,
                task.key,
                vars(main),
                only=names,
                progress=task.progress,
                cancelled=task.cancelled,
            )
            faults = {v.name: v.reason or "" for v in report.variables if v.status == "tombstone"}
            yield vars(main), faults
    finally:
        sys.path[:] = path


_FRAMES = {
    "pandas": ("DataFrame", "Series"),
    "polars": ("DataFrame", "Series", "LazyFrame"),
    "pyarrow": ("Table", "RecordBatch", "ChunkedArray"),
    "geopandas": ("GeoDataFrame",),
}


def _is_frame(type_name: str) -> bool:
    library, _, rest = type_name.partition(".")
    return rest.rpartition(".")[2] in _FRAMES.get(library, ())


def _as_table(pa: Any, value: Any) -> Any:
    kind = type(value).__name__
    library = type(value).__module__.partition(".")[0]
    if library == "polars":
        if kind == "LazyFrame":
            value = value.collect()
        return value.to_frame().to_arrow() if kind == "Series" else value.to_arrow()
    if library == "pyarrow":
        if kind == "RecordBatch":
            return pa.Table.from_batches([value])
        return pa.table({"values": value}) if kind == "ChunkedArray" else value
    return pa.Table.from_pandas(value.to_frame() if kind == "Series" else value)


def _file_name(variable: str) -> str:
    """Return a variable's name as a file's; those of a notebook need not be identifiers."""
    return "".join(c if c.isalnum() or c in "_-" else f"%{ord(c):02x}" for c in variable)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place when it is complete, and leaves nothing if it fails."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kind = StorageFullError if error.errno in (28, 122) else SnapshotError
        raise kind(f"{path} cannot be written: {error}; choose another --output") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
