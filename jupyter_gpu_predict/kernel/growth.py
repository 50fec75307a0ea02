"""A cell that ran out of GPU memory: what it wanted is claimed, and it is run once more if it may.

That is for a leap past the cap: what grows towards it is asked for before (`headroom`). A cell may
run once more where nothing shows that it ran: no effect, no output, nothing of before was bound
anew or changed. Otherwise its error says what would have been needed, and whether that is there
now.
"""

from __future__ import annotations

import ast
import re
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import StaleEpochError
from .gate import ClaimRefused
from .headroom import Headroom
from .memory import device_in_use
from .offload.loaded import loaded_torch

if TYPE_CHECKING:
    from .agent import Agent

UNREPEATABLE_S = 5.0
"""So long at most is memory waited for when the cell will not run again by itself."""

_TRIED = re.compile(r"Tried to allocate ([\d.]+) (bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

Execute = Callable[..., Awaitable[dict[str, Any]]]


@dataclass
class _Failed:
    """The error of a cell, not shown yet, and what it would have taken not to fail, in bytes."""

    etype: type[BaseException]
    value: BaseException
    shown: list[str]
    needed_bytes: int
    why_not_again: str | None


class Growth:
    """Stands around the run of each cell of one kernel."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.headroom = Headroom(agent)
        self._watched = threading.local()
        self._show: Callable[..., None] = lambda *_: None

    def install(self) -> None:
        """Be asked before an error is shown."""
        if self.agent.config.device != "simulated":
            self._show = self.agent.shell._showtraceback
            self.agent.shell._showtraceback = self._showtraceback
            self.headroom.start()

    async def run(
        self, execute: Execute, code: str, silent: bool, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Run a cell by `execute` and return its reply, that of its second run if it had one."""
        device = self.agent.config.device
        if silent or device == "simulated":
            return await execute(code, silent, *args, **kwargs)
        watched = self._watched
        watched.code, watched.failed, watched.random = code, None, self._device_random()
        shell = self.agent.shell
        number, last_errors = shell.execution_count, _last_errors()
        try:
            with self.headroom.watching(self.agent.wants.expected(code)):
                reply = await execute(code, silent, *args, **kwargs)
            failed: _Failed | None = watched.failed
        finally:
            watched.code = None
        if failed is None:
            return reply
        note = await self._claim(failed)
        if note is None:
            self._forget(failed, last_errors)
            # The same cell under the same number, and once in the history.
            ended, shell.execution_count = shell.execution_count, number
            try:
                with self.headroom.watching(failed.needed_bytes):
                    reply = await execute(
                        code, silent, False, *args[1:], **_without_history(kwargs)
                    )
            finally:
                shell.execution_count = ended
            return {**reply, "execution_count": number}
        lines = [*failed.shown, note]
        self._show(failed.etype, failed.value, lines)
        return {**reply, "traceback": lines}

    def _showtraceback(self, etype: type[BaseException], value: BaseException, shown: Any) -> None:
        """Keep the error of a cell that ran out of memory; show any other."""
        torch, watched = loaded_torch(), self._watched
        code = getattr(watched, "code", None)
        wanted = None
        if torch is not None and isinstance(value, torch.OutOfMemoryError):
            wanted = wanted_bytes(str(value))
        module = device_in_use(self.agent.config.device)
        if wanted is None or module is None or not isinstance(code, str):
            self._show(etype, value, shown)
            return
        why = self.agent.recorder.cell_runs.why_not_again() or why_not_again(code)
        if why is None and watched.random is None:
            why = "it was the first to use the GPU"
        elif why is None and watched.random != self._device_random():
            why = "it drew random numbers"
        needed = int(module.memory_allocated()) + wanted
        watched.failed = _Failed(etype, value, list(shown), needed, why)
        self.agent.shell._last_traceback = shown

    async def _claim(self, failed: _Failed) -> str | None:
        """Claim what a cell lacked; return the line for its error, ``None`` if it may run again."""
        agent, again = self.agent, failed.why_not_again is None
        needed = f"{failed.needed_bytes / (1 << 20):.1f} MiB of GPU memory"
        try:
            grant = await agent.gate.claim(
                failed.needed_bytes,
                priority=agent.stated.priority,
                affinity=agent._affinity(),
                deadline_s=None if again else min(UNREPEATABLE_S, agent.config.claim_deadline_s),
                show=again,
            )
            with agent.lock:
                agent._take(grant)
        except ClaimRefused as refused:
            return f"The cell would have needed {needed}. {refused.waited_for or refused}"
        except StaleEpochError:
            return f"The cell would have needed {needed}, which was taken back at once."
        if again:
            return None
        return (
            f"The cell would have needed {needed}, which is there now: run the cell again. "
            f"It was not run again by itself, because {failed.why_not_again}."
        )

    def _forget(self, failed: _Failed, last_errors: dict[str, Any]) -> None:
        """Let go of all that the failed run made: its frames hold the memory."""
        shell = self.agent.shell
        traceback.clear_frames(failed.value.__traceback__)
        failed.value.__traceback__ = None
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            if name in last_errors:
                setattr(sys, name, last_errors[name])
            elif hasattr(sys, name):
                delattr(sys, name)
        shell.InteractiveTB.tb = shell.InteractiveTB.value = None
        shell.last_execution_result = None
        shell._last_traceback = None
        self.agent.recorder.cell_runs.unbind_new()
        module = device_in_use(self.agent.config.device)
        if module is not None:
            module.empty_cache()

    def _device_random(self) -> bytes | None:
        module = device_in_use(self.agent.config.device)
        return None if module is None else module.get_rng_state().numpy().tobytes()


def wanted_bytes(message: str) -> int | None:
    """Return the bytes that an allocator's message says were wanted, ``None`` if it does not."""
    found = _TRIED.search(message)
    # The message is rounded to hundredths of its unit.
    return None if found is None else round((float(found[1]) + 0.01) * _UNITS[found[2]])


def why_not_again(code: str) -> str | None:
    """Return what in a cell's source may change something that was there before."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return "it is not plain Python"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            return f"it changes {ast.unparse(node)!r}"
        if isinstance(node, ast.Name) and node.id in ("setattr", "delattr", "exec", "eval"):
            return f"it calls {node.id}()"
    return None


def _last_errors() -> dict[str, Any]:
    names = ("last_exc", "last_type", "last_value", "last_traceback")
    return {name: getattr(sys, name) for name in names if hasattr(sys, name)}


def _without_history(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "store_history"}
