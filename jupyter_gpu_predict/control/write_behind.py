"""Writes to the store that nobody waits for, gathered and made off the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable

from ..errors import GpuPredictError
from .ports import TraceStore

log = logging.getLogger(__name__)

LULL_S = 0.05
"""What comes within this long is gathered: writes to the store, and the ends of cells."""

Write = Callable[[], None]


class WriteBehind:
    """Keeps the order of the writes; one that the store refuses costs no other."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._writes: deque[Write] = deque()
        self._unwritten = asyncio.Event()
        self._writing = threading.Lock()

    def add(self, write: Write) -> None:
        """Make `write` soon."""
        self._writes.append(write)
        self._unwritten.set()

    async def run(self) -> None:
        """Make the writes as they come, until cancelled."""
        while True:
            await self._unwritten.wait()
            # Each hop to a thread holds the event loop up until the thread lets go of the GIL.
            await asyncio.sleep(LULL_S)
            self._unwritten.clear()
            await asyncio.to_thread(self.write_all)

    def write_all(self) -> None:
        """Make every write now, in this thread."""
        with self._writing:
            writes = [self._writes.popleft() for _ in range(len(self._writes))]
            try:
                self._store.together(lambda: _each(writes))
                return
            except GpuPredictError as error:
                log.debug("The store refused a batch, so each is written alone: %s", error)
            for write in writes:
                try:
                    write()
                except GpuPredictError as error:
                    log.error("The store refused a write: %s", error)


def _each(writes: list[Write]) -> None:
    for write in writes:
        write()
