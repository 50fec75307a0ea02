"""A notebook as the forecaster sees it: its code cells, and where in it a kernel is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from ..model import CellRun, Outcome
from .digest import normalised_digest, source_digest
from .records import check_runs, end_of
from .source import MAX_SOURCE, CellKind, GpuUse, SourceReading, read_source

MAX_READ = 2000
"""Cells whose source is read, those around the last run; of others only the digest is known."""

MAX_TRAIL = 500
"""Runs of a kernel, and of earlier sessions, that a trail goes back."""

_STRENGTH = tuple(GpuUse)
_MOVING = frozenset({GpuUse.MOVES, GpuUse.TRAINS})

UNREAD = SourceReading("nothing", CellKind.WORKS, GpuUse.NONE)


@dataclass(frozen=True, slots=True)
class DocumentCell:
    """One code cell; `cell_id` is ``None`` in notebooks older than format 4.5."""

    cell_id: str | None
    digest: str
    normalised: str
    reading: SourceReading


@dataclass(frozen=True, slots=True)
class Document:
    """The code cells of a notebook in order; `notes` say in words what is not known of it."""

    cells: tuple[DocumentCell, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True, slots=True)
class Trail:
    """Where a kernel has been in a document of `size` code cells.

    `positions` are those of its runs, oldest first; `earlier` are moves of earlier sessions of the
    notebook as pairs of positions. `edited` are cells changed since this kernel last ran them,
    `failed` says that its last run ended with an error. `unplaced` runs were of cells that are not
    in the document.
    """

    size: int
    positions: tuple[int, ...] = ()
    earlier: tuple[tuple[int, int], ...] = ()
    edited: frozenset[int] = frozenset()
    failed: bool = False
    unplaced: int = 0


def read_document(cells: Iterable[tuple[str | None, str]], around: int = 0) -> Document:
    """Return the document of these code cells, given as id and source.

    Sources are read for :data:`MAX_READ` cells around position `around`. A cell that reads a name
    which a cell above it, or itself, put on a GPU counts as :attr:`GpuUse.READS`.
    """
    given = list(cells)
    begin = max(0, min(around - MAX_READ // 4, len(given) - MAX_READ))
    read = [
        _cell(cell_id, source, read=begin <= i < begin + MAX_READ)
        for i, (cell_id, source) in enumerate(given)
    ]
    notes = []
    if len(given) > MAX_READ:
        notes.append(f"of {len(given)} code cells the {MAX_READ} around the last run are read")
    if len({cell.cell_id for cell in read} - {None}) < len(read):
        notes.append("cells without an id of their own are found by their source")
    words = sum(cell.reading.read_by == "words" for cell in read)
    if words:
        notes.append(
            f"{words} of {len(given)} code cells are no Python, or too long, and read by words"
        )
    return Document(tuple(_with_names(read)), tuple(notes))


def _cell(cell_id: str | None, source: str, *, read: bool) -> DocumentCell:
    if not read or len(source) > MAX_SOURCE:
        digest = source_digest(source)
        return DocumentCell(cell_id, digest, digest, read_source(source) if read else UNREAD)
    digest, normalised = _digests(source)
    return DocumentCell(cell_id, digest, normalised, read_source(source))


@lru_cache(maxsize=4096)
def _digests(source: str) -> tuple[str, str]:
    return source_digest(source), normalised_digest(source)


def _with_names(cells: Iterable[DocumentCell]) -> Iterable[DocumentCell]:
    on_gpu: set[str] = set()
    for cell in cells:
        reading = cell.reading
        use = reading.gpu
        if reading.kind is CellKind.DEFINES:
            # A function touches the GPU where it is called.
            use = min(use, GpuUse.LIBRARY, key=_STRENGTH.index)
        elif use not in _MOVING and reading.reads & on_gpu:
            use = GpuUse.READS
        if reading.gpu in _MOVING or use is GpuUse.READS:
            on_gpu |= reading.writes | reading.moved
        else:
            on_gpu -= reading.writes
        yield cell if use is reading.gpu else replace(cell, reading=replace(reading, gpu=use))


def find(document: Document, cells: Iterable[tuple[str | None, str]]) -> list[int | None]:
    """Return the positions of cells given as id and digest, ``None`` where one is not there.

    A cell is the one of its id, else one of its source: the nearest below the cell before it if
    there are several, or else the nearest.
    """
    return _Finder(document).places(cells)


def follow(document: Document, runs: Sequence[CellRun], earlier: Sequence[CellRun] = ()) -> Trail:
    """Return where a kernel has been in a document.

    A run belongs to a cell as in :func:`find`. So a cell edited since is found by its id, and a
    notebook that was renamed or is open in two kernels makes no difference: only `runs` of one
    kernel count.

    Parameters
    ----------
    document
        The notebook as it is now.
    runs
        Of this kernel; those that were refused do not count.
    earlier
        Of earlier sessions of this notebook.

    Raises
    ------
    BadInputError
        If a number in a run is negative, infinite or not a number.
    """
    finder = _Finder(document)
    recent = [r for r in check_runs(runs) if r.outcome is not Outcome.REFUSED][-MAX_TRAIL:]
    places = finder.places((run.cell_id, run.digest) for run in recent)
    last_run = {place: run for run, place in zip(recent, places, strict=True) if place is not None}
    edited = {p for p, run in last_run.items() if run.digest != document.cells[p].digest}
    last = max(recent, key=end_of, default=None)
    return Trail(
        size=len(document),
        positions=tuple(p for p in places if p is not None),
        earlier=tuple(_moves(finder, earlier)),
        edited=frozenset(edited),
        failed=last is not None and last.outcome is Outcome.ERROR,
        unplaced=places.count(None),
    )


def _moves(finder: _Finder, earlier: Sequence[CellRun]) -> Iterable[tuple[int, int]]:
    by_kernel: dict[str, list[CellRun]] = {}
    for run in check_runs(earlier)[-MAX_TRAIL:]:
        by_kernel.setdefault(run.kernel_id, []).append(run)
    for group in by_kernel.values():
        places = finder.places((run.cell_id, run.digest) for run in group)
        for before, after in itertools.pairwise(places):
            if before is not None and after is not None:
                yield before, after


class _Finder:
    """Finds the cells of runs."""

    def __init__(self, document: Document) -> None:
        self._ids: dict[str, int] = {}
        self._digests: dict[str, list[int]] = {}
        twice = set()
        for place, cell in enumerate(document.cells):
            if cell.cell_id is not None:
                if cell.cell_id in self._ids:
                    twice.add(cell.cell_id)
                self._ids[cell.cell_id] = place
            self._digests.setdefault(cell.digest, []).append(place)
        for cell_id in twice:
            del self._ids[cell_id]

    def places(self, cells: Iterable[tuple[str | None, str]]) -> list[int | None]:
        """Return the position of each cell, ``None`` where it is not in the document."""
        found: list[int | None] = []
        last = -1
        for cell_id, digest in cells:
            place = None if cell_id is None else self._ids.get(cell_id)
            if place is None and (same := self._digests.get(digest)):
                place = min(same, key=lambda p: (p <= last, abs(p - last - 1)))
            found.append(place)
            last = last if place is None else place
        return found
