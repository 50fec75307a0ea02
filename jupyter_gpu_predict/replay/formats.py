"""The file formats of traces: which file has which, and what its columns mean."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ..core.model import MIB
from ..errors import BadInputError
from .traces import Array, Records, Trace, make_trace

_CHUNK = 100_000
_MISSING = frozenset({"", "nan", "na", "none", "null"})


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of CSV: its columns, the first of which names the session, and what they mean."""

    name: str
    columns: tuple[str, ...]
    grain_s: float
    records: Callable[[dict[str, Array]], Records]


def _adobe(columns: dict[str, Array]) -> Records:
    return Records(
        columns["session"], 60 * columns["start_min"], 60 * columns["dur_min"], columns["num_gpu"]
    )


def _cells(columns: dict[str, Array]) -> Records:
    # Whether a cell used the GPU is a guess from its source, made by whoever took the trace.
    uses = columns["gpu_cell"]
    # Without a word on the GPU a record is none that can be used, and is counted as such.
    work_s = np.where(np.isnan(uses), np.nan, columns["dur_s"])
    return Records(columns["session"], columns["t_start_s"], work_s).take(uses != 0)


def _requests(columns: dict[str, Array]) -> Records:
    return Records(columns["user"], columns["t_s"], columns["exec_s"])


def _pods(columns: dict[str, Array]) -> Records:
    """Return runs of samples in which a GPU was busy as bursts; a gap in the samples ends one.

    A sample without a time or a duty is a record of its own, which cannot be used.
    """
    known = (columns["t_s"] >= 0) & (columns["duty_pct"] >= 0)
    known &= np.isfinite(columns["t_s"]) & np.isfinite(columns["duty_pct"])
    unusable = columns["pod"][~known]
    columns = {name: values[known] for name, values in columns.items()}
    order = np.lexsort((columns["t_s"], columns["pod"]))
    pod, t_s, duty, mib = (columns[c][order] for c in ("pod", "t_s", "duty_pct", "mem_mib"))
    busy = duty > 0
    follows = (pod[1:] == pod[:-1]) & (t_s[1:] - t_s[:-1] <= 2 * _POD_STEP_S)
    first = busy & np.concatenate([[True], ~(busy[:-1] & follows)])
    number = np.cumsum(first)[busy] - 1
    at = np.flatnonzero(first)
    samples = np.bincount(number, minlength=len(at))
    last = np.flatnonzero(busy)[np.cumsum(samples) - 1] if len(at) else at
    memory = np.full(len(at), np.nan)
    np.fmax.at(memory, number, mib[busy])
    mean = np.bincount(number, weights=duty[busy], minlength=len(at)) / np.maximum(1, samples)
    work_s = t_s[last] - t_s[at] + _POD_STEP_S
    nothing: Array = np.full(len(unusable), np.nan)

    def with_unusable(values: Array) -> Array:
        return np.concatenate([values, nothing])

    return Records(
        np.concatenate([pod[at], unusable]),
        with_unusable(t_s[at]),
        with_unusable(work_s),
        None,
        with_unusable(memory * MIB),
        with_unusable(mean / 100),
    )


_POD_STEP_S = 57.0

FORMATS = (
    Format("adobe events", ("session", "start_min", "dur_min", "num_gpu"), 60.0, _adobe),
    Format("notebook cells", ("session", "t_start_s", "dur_s", "gpu_cell"), 0.01, _cells),
    Format("pod samples", ("pod", "t_s", "duty_pct", "mem_mib"), _POD_STEP_S, _pods),
    Format("user requests", ("user", "t_s", "exec_s"), 1.0, _requests),
)
"""Formats of CSV files, told from each other by their columns."""


def choose(path: Path, head: bytes) -> Trace:
    """Return the trace in a file that begins with `head`."""
    if head.startswith(b"SQLite format 3\0"):
        return read_store(path)
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if head.startswith(b"\x1f\x8b") else raw
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
                return _read_csv(path, text)
    except UnicodeDecodeError:
        kinds = "CSV, gzipped CSV or a server's SQLite file"
        raise BadInputError(f"{path}: not a text file; give {kinds}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise BadInputError(f"{path}: cannot be read to its end: {error}; fetch it again") from None


def _read_csv(path: Path, text: io.TextIOBase) -> Trace:
    reader = csv.reader(text, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        kind = next((f for f in FORMATS if set(f.columns) <= set(header)), None)
        if kind is None:
            known = "; ".join(",".join(f.columns) for f in FORMATS)
            raise BadInputError(
                f"{path}, line 1: no known columns in {','.join(header)[:200]!r}; known: {known}"
            )
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise BadInputError(f"{path}, line 1: column {twice[0]!r} is there twice; drop one")
        names: dict[str, int] = {}
        parts = list(_chunks(path, reader, header, kind, names))
    except csv.Error as error:
        raise BadInputError(f"{path}, line {reader.line_num}: {error}; mend the line") from None
    columns = {
        c: np.concatenate([p[c] for p in parts]) if parts else np.empty(0) for c in kind.columns
    }
    extra = [name for name in header if name not in kind.columns]
    notes = [f"columns not used: {', '.join(extra)}"] if extra else []
    return make_trace(str(path), kind.grain_s, kind.records(columns), list(names), notes)


def _chunks(
    path: Path, reader: Iterator[list[str]], header: list[str], kind: Format, names: dict[str, int]
) -> Iterator[dict[str, Array]]:
    places = {column: header.index(column) for column in kind.columns}
    session, *numbers = kind.columns
    line = 2
    while rows := list(itertools.islice(reader, _CHUNK)):
        for row_number, row in enumerate(rows):
            if len(row) != len(header):
                raise BadInputError(
                    f"{path}, line {line + row_number}: {len(row)} fields, not {len(header)}; "
                    "mend the line"
                )
        texts = list(zip(*rows, strict=True))
        keys = texts[places[session]]
        found: dict[str, Array] = {
            session: np.fromiter(
                (names.setdefault(k, len(names)) for k in keys), dtype=np.int64, count=len(keys)
            )
        }
        for column in numbers:
            found[column] = _numbers(path, line, column, texts[places[column]])
        yield found
        line += len(rows)


def _numbers(path: Path, first_line: int, column: str, texts: tuple[str, ...]) -> Array:
    try:
        return np.array(texts, dtype=np.float64)
    except ValueError:
        values = np.empty(len(texts))
    for i, text in enumerate(texts):
        try:
            values[i] = np.nan if text.strip().lower() in _MISSING else float(text)
        except ValueError:
            raise BadInputError(
                f"{path}, line {first_line + i}, column {column!r}: {text[:40]!r} is not a number; "
                "mend it or leave it empty"
            ) from None
    return values


def read_store(path: Path) -> Trace:
    """Return the cell runs with device memory that a Jupyter server's trace store holds.

    Each notebook is a session; runs without a notebook count by their kernel.

    Raises
    ------
    BadInputError
        If the file is no such store or is damaged.
    """
    query = (
        "SELECT coalesce(notebook, kernel_id), start_s, end_s - start_s, peak_bytes, busy_s"
        " FROM cell_runs WHERE peak_bytes > 0 AND outcome != 'refused'"
    )
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as store:
            rows = store.execute(query).fetchall()
    except sqlite3.Error as error:
        raise BadInputError(
            f"{path}: not a trace store of a server ({error}); see `%gpu`"
        ) from None
    names: dict[str, int] = {}
    key = np.array([names.setdefault(row[0], len(names)) for row in rows], dtype=np.int64)
    start, work, memory, busy = (
        np.array([row[i] for row in rows], dtype=np.float64) for i in range(1, 5)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        duty = np.clip(np.where(work > 0, busy / work, 0.0), 0.0, 1.0)
    return make_trace(str(path), 0.001, Records(key, start, work, None, memory, duty), list(names))
