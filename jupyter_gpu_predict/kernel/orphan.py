"""End a kernel that no server comes back for.

Kernels outlive a killed server so that the next one can re-adopt them; without this they would
hold their memory for ever when none comes.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent import Agent

CHECK_S = 10.0


class OrphanWatch:
    """Watches the server's process from the control thread's event loop."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.server_pid = agent.config.server_pid
        self._alone_since: float | None = None

    def adopted_by(self, server_pid: int) -> None:
        """Watch another server from now on."""
        self.server_pid = server_pid
        self._alone_since = None

    def start(self) -> None:
        """Begin to watch."""
        if self.server_pid:
            loop = self.agent.kernel.control_thread.io_loop
            loop.add_callback(lambda: loop.call_later(CHECK_S, self._check))

    def _check(self) -> None:
        agent = self.agent
        if _alive(self.server_pid) or agent.active:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > agent.config.orphan_timeout_s:
            agent.kernel.log.warning("gpu-predict: no server came back; this kernel ends")
            agent.kernel.io_loop.add_callback(agent.kernel.io_loop.stop)
            return
        agent.kernel.control_thread.io_loop.call_later(CHECK_S, self._check)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
