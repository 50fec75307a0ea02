"""What is known of each kernel's notebook: its document, its cells' history, where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..core.forecast.content import Situation
from ..core.forecast.situation import Known, situation_of
from ..core.model import CellRun, Forecast
from ..errors import GpuPredictError
from .ports import SavedNotebook
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

HISTORY_S = 300.0
"""How long what other kernels have run is taken as read."""

MAX_CELLS = 1000
"""Cells whose runs elsewhere are looked for."""

LINE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Seen:
    """A kernel's situation, ``None`` where its notebook is not known."""

    situation: Situation | None
    saved: SavedNotebook
    notes: tuple[str, ...] = ()

    def told(self, forecast: Forecast) -> Forecast:
        """Return the forecast with what its next cells are called, and this one's notes."""
        cells = self.saved.document.cells
        return replace(
            forecast,
            notes=tuple(dict.fromkeys((*forecast.notes, *self.notes))),
            next_cells=tuple(
                replace(
                    cell,
                    cell_id=cells[cell.position].cell_id,
                    line=self.saved.lines[cell.position][:LINE_CHARS],
                )
                for cell in forecast.next_cells
            ),
        )


@dataclass(slots=True)
class _History:
    """What other kernels ran of a document's cells."""

    digests: Sequence[str]
    read_s: float
    earlier: list[CellRun] = field(default_factory=list)
    elsewhere: list[CellRun] = field(default_factory=list)


class Situations:
    """Puts together what the content is forecast from, off the event loop."""

    def __init__(self, loop: ControlLoop) -> None:
        self._loop = loop
        self._histories: dict[str, _History] = {}
        # One thread at a time: the event loop has to wait for each of them in turn.
        self._computing = asyncio.Lock()

    def forget(self, kernel_id: str) -> None:
        """Drop what is kept about a kernel that is gone."""
        self._histories.pop(kernel_id, None)
        if self._loop.notebooks is not None:
            self._loop.notebooks.forget(kernel_id)

    async def of(self, record: KernelRecord, now_s: float) -> Seen:
        """Return a kernel's situation; what is not known of it is named in a note."""
        notebooks = self._loop.notebooks
        if notebooks is None:
            return Seen(None, SavedNotebook())
        saved = await notebooks.saved(
            record.kernel_id,
            record.notebook,
            used_s=record.last_used_s,
            last_cell=record.runs[-1].cell_id if record.runs else None,
        )
        notes = tuple(f"notebook: {note}" for note in saved.document.notes)
        if not len(saved.document):
            return Seen(None, saved, notes)
        # A request is answered a moment after its cell has ended; while one runs it is the first.
        waiting = record.queued_cells[1:] if record.busy else record.queued_cells
        known = Known(
            now_s=now_s,
            runs=list(record.runs),
            normalised=saved.normalised,
            queued=waiting,
            running_since_s=record.running_since_s,
            running_digest=record.running_digest,
            held_bytes=record.used_bytes + record.suspended_bytes,
        )
        try:
            async with self._computing:
                history, situation = await asyncio.to_thread(self._read, record, saved, known)
        except GpuPredictError as error:
            return Seen(None, saved, (*notes, str(error)))
        self._histories[record.kernel_id] = history
        return Seen(situation, saved, notes)

    def _read(
        self, record: KernelRecord, saved: SavedNotebook, known: Known
    ) -> tuple[_History, Situation]:
        history = self._history(record, saved, known.now_s)
        known = replace(known, earlier=history.earlier, elsewhere=history.elsewhere)
        return history, situation_of(saved.document, known)

    def _history(self, record: KernelRecord, saved: SavedNotebook, now_s: float) -> _History:
        digests = [cell.digest for cell in saved.document.cells[:MAX_CELLS]]
        known = self._histories.get(record.kernel_id)
        if known is not None and known.digests == digests and now_s - known.read_s < HISTORY_S:
            return known
        cell_runs = self._loop.store.cell_runs
        earlier = cell_runs(notebook=record.notebook) if record.notebook else []
        elsewhere = cell_runs(digests=digests)
        return _History(
            digests,
            now_s,
            [run for run in earlier if run.kernel_id != record.kernel_id],
            [
                run
                for run in elsewhere
                if run.kernel_id != record.kernel_id and run.notebook != record.notebook
            ],
        )
