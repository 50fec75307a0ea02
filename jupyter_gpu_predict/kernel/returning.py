"""What a cell does not need at once comes back between cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import GpuPredictError
from .offload import RestoreReport, UseLog

if TYPE_CHECKING:
    from .agent import Agent

SLICE_BYTES = 64 << 20
"""So much comes back at a time; a cell that arrives meanwhile waits for no more than that."""

AGAIN_S = 1.0
"""After so long it is tried again where it was not possible."""


class Returning:
    """Restores for a cell only what it is likely to touch, and the rest while no cell runs.

    From the first of it until all is back the kernel is no longer suspended: its lease covers all
    of it, and what still waits in host memory counts as used.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.active = False
        self.uses = UseLog()
        self._planned = False

    @property
    def left_bytes(self) -> int:
        """Bytes that are the kernel's again and still wait in host memory."""
        return self.agent.offloader.suspended_bytes if self.active else 0

    def last_use(self) -> Mapping[int, int]:
        """Return when each storage was last used, as far as the cells tell."""
        return self.uses.by_storage(self.agent.shell.user_ns)

    def restore_for(self, code: str) -> RestoreReport:
        """Bring back what a cell names, and let the rest follow."""
        agent = self.agent
        values = self.uses.next_values(code, agent.shell.user_ns)
        report: RestoreReport = agent.offloader.restore(values)
        self.active = report.left_bytes > 0
        return report

    def taken_back(self) -> None:
        """Note that the kernel's memory was taken back again."""
        self.active = False

    def soon(self, delay_s: float = 0.0) -> None:
        """Go on once the loop is free; safe from any thread."""
        if self.active and not self._planned:
            self._planned = True
            loop = self.agent.kernel.io_loop
            loop.add_callback(lambda: loop.call_later(delay_s, self._some))

    def _some(self) -> None:
        agent = self.agent
        self._planned = False
        with agent.lock:
            if agent.active or not self.active:
                return  # the cell goes on with it when it ends
            try:
                report = agent.offloader.restore_some(SLICE_BYTES)
            except GpuPredictError as error:
                agent.kernel.log.debug("gpu-predict: the rest waits on the host: %s", error)
                self.soon(AGAIN_S)
                return
            self.active = report.left_bytes > 0
            if not self.active:
                agent.recorder.measure()
        if self.active:
            self.soon(0.0 if report.storages else AGAIN_S)
        else:
            agent.notify_demand()
