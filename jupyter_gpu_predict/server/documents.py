"""The notebooks of this server's kernels, read through the contents API as they are saved."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tornado.web import HTTPError

from ..control.ports import SavedNotebook
from ..core.trace.document import MAX_READ, Document, read_document
from ..errors import BadInputError, GpuPredictError
from .notebook_text import Cell, code_cell, code_cells

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Time between two looks at a notebook. Saves are looked for and not listened to: with a listener,
any contents manager that somebody calls in a thread would fail there."""

RECENT_S = 900.0
"""How long after its last use a kernel's notebook is looked at."""

PATIENCE_S = 2.0
"""How long a forecast waits for a look; after that the last notebook serves."""

MAX_BYTES = 64 << 20
"""A larger notebook is not read."""

MAX_CELLS = 20_000

MAX_SEEN = 10_000
"""Sources of one notebook whose digests are remembered."""


@dataclass
class _Entry:
    """What is known of one kernel's notebook; `stamp` says of which version."""

    saved: SavedNotebook
    stamp: Any = None
    looked_s: float | None = None
    task: asyncio.Task[None] | None = None
    normalised: dict[str, str] = field(default_factory=dict)


class Documents:
    """The port :class:`..control.ports.Notebooks`, over the server's contents and sessions.

    Parameters
    ----------
    server
        Whose `contents_manager` and `session_manager` are asked.
    clock
        In seconds since the epoch.
    """

    def __init__(self, server: Any, clock: Callable[[], float] = time.time) -> None:
        self._contents = server.contents_manager
        self._sessions = server.session_manager
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        self._computing = asyncio.Lock()

    async def close(self) -> None:
        """Cancel the looks under way."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self, kernel_id: str) -> None:
        """Drop what is kept about a kernel that is gone."""
        entry = self._entries.pop(kernel_id, None)
        if entry is not None and entry.task is not None:
            entry.task.cancel()

    async def saved(
        self, kernel_id: str, notebook: str | None, *, used_s: float, last_cell: str | None
    ) -> SavedNotebook:
        """See the port."""
        entry = self._entries.setdefault(kernel_id, _Entry(_nothing("it is not read yet")))
        if entry.task is None and self._due(entry, used_s):
            entry.looked_s = self._clock()
            entry.task = asyncio.ensure_future(self._look(kernel_id, entry, notebook, last_cell))
            entry.task.add_done_callback(lambda _: setattr(entry, "task", None))
        if entry.task is not None:
            await asyncio.wait({entry.task}, timeout=PATIENCE_S)
        return entry.saved

    def _due(self, entry: _Entry, used_s: float) -> bool:
        if entry.looked_s is None:
            return True
        now_s = self._clock()
        # A clock that was set back must not stop the looks.
        rested = not 0 <= now_s - entry.looked_s < LOOK_S
        return rested and (used_s > entry.looked_s or now_s - used_s < RECENT_S)

    async def _look(
        self, kernel_id: str, entry: _Entry, notebook: str | None, last_cell: str | None
    ) -> None:
        path = notebook
        try:
            path = await self._path(kernel_id, notebook)
            if path is None:
                entry.saved = _nothing("this kernel has none")
                return
            about = await self._get(path, content=False)
            # Of a longer one only a part is read, and which part hangs on the last run.
            part = last_cell if len(entry.saved.document) > MAX_READ else None
            stamp = path, about["last_modified"], part
            if stamp != entry.stamp:
                cells = await self._cells(path, about.get("size") or 0)
                entry.saved = await self._quietly(_saved, cells, entry.normalised, last_cell)
                entry.stamp = stamp
        except Exception as error:
            # Contents managers are anybody's; one that fails costs the forecast its document only.
            why = error.log_message or error.reason if isinstance(error, HTTPError) else str(error)
            if not isinstance(error, (GpuPredictError, HTTPError)):
                log.warning("Notebook %s cannot be read", path, exc_info=True)
            entry.stamp = None
            entry.saved = _nothing(f"{path} cannot be read ({why or type(error).__name__})")

    async def _path(self, kernel_id: str, notebook: str | None) -> str | None:
        """Return the path of the kernel's session, which follows a rename."""
        try:
            found = self._sessions.get_session(kernel_id=kernel_id, type="notebook")
            session = await found if inspect.isawaitable(found) else found
        except HTTPError:
            return notebook
        return str(session["path"])

    async def _get(self, path: str, *, content: bool, kind: str | None = None) -> dict[str, Any]:
        more = {} if kind is None else {"type": kind}
        if kind == "file":
            more["format"] = "text"
        get = self._contents.get
        if inspect.iscoroutinefunction(get):
            model: dict[str, Any] = await get(path, content=content, **more)
            return model
        return await asyncio.to_thread(get, path, content=content, **more)

    async def _cells(self, path: str, size_bytes: int) -> list[Cell]:
        """Return the code cells of a notebook.

        A notebook's file is read as text: as a notebook the server would parse and check all of it
        on its event loop. What is no such file (as Jupytext has) is read as the notebook it makes.
        """
        if path.endswith(".ipynb"):
            if size_bytes > MAX_BYTES:
                raise BadInputError(f"it has more than {MAX_BYTES >> 20} MiB; clear its outputs")
            model = await self._get(path, content=True, kind="file")
            return await self._quietly(code_cells, model["content"])
        model = await self._get(path, content=True, kind="notebook")
        found = map(code_cell, model["content"]["cells"])
        return [cell for cell in found if cell is not None]

    async def _quietly(self, work: Callable[..., T], *given: Any) -> T:
        """Compute in a thread, one at a time: the event loop has to wait for each in turn."""
        async with self._computing:
            return await asyncio.to_thread(work, *given)


def _nothing(why: str) -> SavedNotebook:
    return SavedNotebook(Document(notes=(why,)))


def _saved(
    cells: Sequence[Cell], normalised: dict[str, str], last_cell: str | None
) -> SavedNotebook:
    kept = cells[:MAX_CELLS]
    around = (i for i, (cell_id, _) in enumerate(kept) if cell_id == last_cell)
    document = read_document(kept, around=next(around, 0))
    notes = document.notes
    if len(cells) > len(kept):
        notes = (*notes, f"of {len(cells)} code cells the first {MAX_CELLS} are known")
    if not cells:
        notes = (*notes, "it has no code cells")
    if len(normalised) < MAX_SEEN:
        normalised.update((cell.digest, cell.normalised) for cell in document.cells)
    return SavedNotebook(
        Document(document.cells, notes), [_first_line(s) for _, s in kept], dict(normalised)
    )


def _first_line(source: str) -> str:
    return source.lstrip().partition("\n")[0].rstrip()[:200]
