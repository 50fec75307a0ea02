"""Cell runs as the kernel sees them, sent to the server when they end."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.trace.digest import source_digest
from .cell_runs import CellRuns
from .memory import PeakMeter
from .messages import CellRunMessage

if TYPE_CHECKING:
    from .agent import Agent

SETTLE_S = 0.2
"""How long a kernel must be quiet before memory that was not measured exactly is measured."""

SETTLE_WITHIN_S = 2.0
"""So long at most is that put off by cells that follow each other closely."""

DEMAND_INTERVAL_S = 1.0
"""Demand notices go out at most this often."""


SHORT_S = 0.05
"""A cell shorter than this that changed nothing is told with the next notices; where it is known to
be so short, its start is not told at all. Two notices cost a trivial cell about 1 ms."""

REMEMBERED_CELLS = 1000


@dataclass
class Run:
    """A cell run under way."""

    cell_id: str | None
    digest: str
    start_s: float


class Recorder:
    """Measures each cell run and reports it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.meter = PeakMeter(agent.config.device)
        self.used_bytes = 0
        self._told: tuple[int, int] = (0, 0)
        self._told_at = 0.0
        self._settling = False
        self._settling_since = 0.0
        self._last_end = 0.0
        self.running_digest: str | None = None
        self._inexact = False
        self._ended: list[CellRunMessage] = []
        self._usual_s: dict[str, float] = {}
        self._running = threading.local()  # subshells run beside the main shell
        self.cell_runs = CellRuns(agent.shell, observing=agent.config.observe_cells)

    def begin(self, code: str | None, cell_id: str | None) -> None:
        """Note that a cell starts; ``None`` for a silent execute, which is no cell run."""
        self._running.run = None
        if code is None:
            return
        run = Run(cell_id, source_digest(code), time.time())
        self._running.run = run
        self.running_digest = run.digest
        # A notice wakes ipykernel's thread for iopub, with which every system call after it would
        # have to share the interpreter.
        self.meter.begin()
        if self._usual_s.get(run.digest, SHORT_S) >= SHORT_S:
            self.agent.notify_state("busy", running_digest=run.digest)
        self.cell_runs.begin(code, cell_id)

    def end(self, reply: dict[str, Any], *, refused: bool) -> None:
        """Note that it ended, with what it took."""
        run: Run | None = getattr(self._running, "run", None)
        if run is None:
            self._settle(exact="torch" not in sys.modules)
            return
        outcome = "refused" if refused else _outcome(reply)
        with self.agent._never_in_the_way("what a cell changed"):
            self.cell_runs.end(outcome)
        before = self.used_bytes
        self.running_digest = None
        peak = self.meter.end()
        end_s = time.time()
        # What still waits in host memory is the kernel's again, and its place is kept.
        left = self.agent.returning.left_bytes
        self.used_bytes = peak.end_bytes + left
        peak_bytes = peak.peak_bytes + left
        if peak_bytes:
            self.agent.peaks[run.digest] = peak_bytes
        self._ended.append(
            CellRunMessage(
                cell_id=run.cell_id,
                digest=run.digest,
                start_s=run.start_s,
                end_s=end_s,
                peak_bytes=peak_bytes,
                end_bytes=self.used_bytes,
                peak_source=peak.source,
                host_peak_bytes=peak.host_peak_bytes,
                busy_s=end_s - run.start_s if peak_bytes else 0.0,
                outcome=outcome,
            )
        )
        if len(self._usual_s) >= REMEMBERED_CELLS:
            self._usual_s.clear()
        # A cell that failed at once this time may run long again: the longest counts, fading.
        usual_s = self._usual_s.get(run.digest, 0.0) / 2
        self._usual_s[run.digest] = max(usual_s, end_s - run.start_s)
        short = end_s - run.start_s < SHORT_S and self.used_bytes == before
        if not short:
            self.tell_runs()
        self._settle(exact=peak.exact)
        if short:
            self._settle_later()

    def tell_runs(self) -> None:
        """Send the cell runs that were kept back; safe from any thread."""
        ended, self._ended = self._ended, []
        for message in ended:
            self.agent.link.notify(message)

    def measure(self) -> int:
        """Measure the device memory in use now, exactly."""
        self.used_bytes = self.meter.refresh() + self.agent.returning.left_bytes
        return self.used_bytes

    def _settle(self, *, exact: bool) -> None:
        self._last_end = time.monotonic()
        now = (self.used_bytes, self.agent.suspended_bytes)
        if exact and now == self._told:
            return
        if exact and time.monotonic() - self._told_at >= DEMAND_INTERVAL_S:
            self._tell()
        else:
            self._inexact = True
            self._settle_later()

    def _settle_later(self) -> None:
        if not self._settling:
            self._settling = True
            self._settling_since = time.monotonic()
            loop = self.agent.kernel.io_loop
            # From a subshell or the control thread only add_callback is safe.
            loop.add_callback(lambda: loop.call_later(SETTLE_S, self._settled))

    def _settled(self) -> None:
        now = time.monotonic()
        quiet = now - self._last_end
        if quiet < SETTLE_S and now - self._settling_since < SETTLE_WITHIN_S:
            # A scan now would make the next cell wait for it.
            self.agent.kernel.io_loop.call_later(SETTLE_S - quiet, self._settled)
            return
        self._settling = False
        self.tell_runs()
        if not self._inexact:
            return
        with self.agent.lock:
            if self.agent.active:
                return  # the running cell reports when it ends
            self._inexact = False
            self.measure()
        self._tell()

    def _tell(self) -> None:
        now = (self.used_bytes, self.agent.suspended_bytes)
        if now != self._told:
            self._told, self._told_at = now, time.monotonic()
            self.agent.notify_demand()


def _outcome(reply: dict[str, Any]) -> str:
    if reply.get("status") == "ok":
        return "ok"
    if reply.get("ename") in {"KeyboardInterrupt", "CancelledError"}:
        return "interrupted"
    return "error"
