"""Which kernels are at work, as Jupyter itself sees it: for those that nobody else speaks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ..control.loop import ControlLoop

log = logging.getLogger(__name__)

LOOK_S = 0.2

FAILED_S = 1.0
"""How long after a look that failed the next one waits."""


class AtWork:
    """Watches the status of every kernel that has no agent or stands still in the driver.

    Jupyter notes each status message of a kernel in its manager. Kernels without the agent say
    nothing else; and one that the driver has cannot be relied on to say that it waits.
    """

    def __init__(self, loop: ControlLoop, managers: Mapping[str, Any]) -> None:
        self.loop = loop
        self._managers = managers
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                # Kernels without the agent would be idle for ever, and never be brought back.
                log.exception("A look at the kernels' status failed; the next one follows")
                await asyncio.sleep(FAILED_S)
            await asyncio.sleep(LOOK_S)

    def look(self) -> None:
        """Note who is at work now."""
        now = self.loop.clock()
        for record in self.loop.kernels.values():
            state = getattr(self._managers.get(record.kernel_id), "execution_state", None)
            busy = state == "busy"
            began = busy and record.shell_busy_s is None
            if not busy:
                record.shell_busy_s = None
            elif began:
                record.shell_busy_s = now
            if record.ready and not record.port.has_agent:
                if busy and not record.busy:
                    self.loop.cell_started(record, None)
                elif not busy and record.busy:
                    self.loop.cell_over(record)
            if began and record.checkpointed:
                self.loop.wake()
