"""Traces of notebooks' GPU bursts: what they hold, and how their records are put in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInputError

Array = Any
"""A numpy array; numpy is not typed here."""


@dataclass(frozen=True, slots=True)
class Session:
    """One notebook's bursts in the order of their starts.

    `start_s` and `work_s` are seconds, `gpus` how many GPUs each burst used, `memory_bytes` the
    most device memory it held and `duty` the share of its time in which it kept a GPU busy; the
    last two are ``None`` where the trace does not say.
    """

    name: str
    start_s: Array
    work_s: Array
    gpus: Array
    memory_bytes: Array | None = None
    duty: Array | None = None

    def __len__(self) -> int:
        return len(self.start_s)


@dataclass(frozen=True, slots=True)
class Trace:
    """Sessions of one source; `grain_s` is the resolution of its times.

    `notes` say in plain sentences what was left out or put right, with counts.
    """

    name: str
    grain_s: float
    sessions: tuple[Session, ...]
    notes: tuple[str, ...] = ()

    @property
    def bursts(self) -> int:
        """Number of bursts in all sessions."""
        return sum(map(len, self.sessions))


@dataclass(slots=True)
class Records:
    """Columns of a trace as they were read: `key` names the session of each record."""

    key: Array
    start_s: Array
    work_s: Array
    gpus: Array | None = None
    memory_bytes: Array | None = None
    duty: Array | None = None

    def take(self, which: Array) -> Records:
        """Return the records that `which` (a mask or indices) selects."""
        columns = (self.gpus, self.memory_bytes, self.duty)
        rest = (None if c is None else c[which] for c in columns)
        return Records(self.key[which], self.start_s[which], self.work_s[which], *rest)


def read_trace(path: str | Path) -> Trace:
    """Return the trace in a file: CSV, gzipped or not, or a Jupyter server's trace store.

    The format is told from the file's content. Records without a usable number, or negative, or
    without duration, and exact duplicates are left out and counted in `notes`; records out of
    order are sorted.

    Raises
    ------
    BadInputError
        If the file cannot be read, is of no known format, or a field is not a number; the message
        names the file and, where there are such, line and column.
    """
    from .formats import choose

    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise BadInputError(
            f"{path}: {error.strerror or error}; give the path of a trace"
        ) from None
    return choose(path, head)


def make_trace(
    name: str, grain_s: float, records: Records, names: Sequence[str], notes: Sequence[str] = ()
) -> Trace:
    """Return clean sessions of the records; `key` of each is an index into `names`.

    Raises
    ------
    BadInputError
        If nothing usable is left.
    """
    told = list(notes)
    records = _drop_unusable(records, told)
    records = records.take(np.argsort(records.key, kind="stable"))
    back = (np.diff(records.start_s) < 0) & (np.diff(records.key) == 0)
    if back.any():
        told.append(f"{np.count_nonzero(back)} records begin before the one before them; sorted")
    records = _drop_duplicates(records, told)
    if len(records.key) == 0:
        raise BadInputError(
            f"{name}: no usable record is left ({'; '.join(told) or 'it is empty'})"
        )
    overlaps = _count_overlaps(records)
    if overlaps:
        told.append(f"{overlaps} bursts begin before the one before them ended and follow it")
    edges: Array = np.flatnonzero(np.diff(records.key)) + 1
    spans = zip([0, *edges.tolist()], [*edges.tolist(), len(records.key)], strict=True)
    sessions = tuple(
        _session(names[int(records.key[first])], records.take(slice(first, last)))
        for first, last in spans
    )
    return Trace(name, grain_s, sessions, tuple(told))


def _session(name: str, part: Records) -> Session:
    gpus = np.ones(len(part.key)) if part.gpus is None else part.gpus
    return Session(name, part.start_s, part.work_s, gpus, part.memory_bytes, part.duty)


def _drop_unusable(records: Records, told: list[str]) -> Records:
    columns = [
        c
        for c in (
            records.start_s,
            records.work_s,
            records.gpus,
            records.memory_bytes,
            records.duty,
        )
        if c is not None
    ]
    finite: Array = np.ones(len(records.key), dtype=bool)
    positive = finite.copy()
    for column in columns:
        finite &= np.isfinite(column)
        positive &= ~(column < 0)
    lasting = records.work_s > 0
    for why, bad in (
        ("without a usable number", ~finite),
        ("with a negative number", finite & ~positive),
        ("without duration", finite & positive & ~lasting),
    ):
        count = int(np.count_nonzero(bad))
        if count:
            told.append(f"{count} records {why} were left out")
    return records.take(finite & positive & lasting)


def _drop_duplicates(records: Records, told: list[str]) -> Records:
    """Leave out records that repeat one with the same session, start and duration."""
    order = np.lexsort((records.work_s, records.start_s, records.key))
    records = records.take(order)
    same: Array = np.ones(max(0, len(records.key) - 1), dtype=bool)
    for column in (records.key, records.start_s, records.work_s):
        same &= column[1:] == column[:-1]
    count = int(np.count_nonzero(same))
    if count:
        told.append(f"{count} duplicate records were left out")
        return records.take(np.concatenate([[True], ~same]))
    return records


def _count_overlaps(records: Records) -> int:
    early = records.start_s[1:] < records.start_s[:-1] + records.work_s[:-1]
    return int(np.count_nonzero(early & (records.key[1:] == records.key[:-1])))
