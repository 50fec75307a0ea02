"""Guards around the kernel's message handlers.

Only wrapping both handler dictionaries sees every message that could touch user objects: silent
executes, user expressions, comms during async cells, subshells, execute on the control channel and
the debugger. Hooks such as `pre_execute` miss some of them.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

TOUCHING = frozenset({"execute_request", "comm_open", "comm_msg", "comm_close", "debug_request"})
"""Messages that may run user code. Tab and Shift-Tab read the host copy and evict nobody."""

_HARMLESS_DEBUG = frozenset(
    {"debugInfo", "initialize", "attach", "configurationDone", "dumpCell", "disconnect", "modules",
     "source", "threads", "setBreakpoints", "setExceptionBreakpoints"}
)  # fmt: skip

Handler = Callable[[Any, Any, dict[str, Any]], Any]


class Touchable(Protocol):
    """What the guard needs of the agent."""

    @property
    def suspended(self) -> bool:
        """Whether device memory of this kernel was taken back."""

    async def before_touch(self, msg_type: str) -> None:
        """Bring suspended state back if it can be had in time."""

    def touching(self, delta: int) -> None:
        """Count handlers that may be touching user objects."""

    async def pass_hold(self) -> None:
        """Wait while the kernel is held for a move."""


def install_guards(kernel: Any, agent: Touchable) -> None:
    """Wrap every handler of `kernel` that could touch user objects."""
    for msg_type in list(kernel.shell_handlers):
        kernel.shell_handlers[msg_type] = _shell(kernel.shell_handlers[msg_type], msg_type, agent)
    for msg_type in list(kernel.control_handlers):
        if msg_type in TOUCHING:
            kernel.control_handlers[msg_type] = _control(
                kernel, kernel.control_handlers[msg_type], msg_type, agent
            )


def _shell(handler: Handler, msg_type: str, agent: Touchable) -> Handler:
    touches = msg_type in TOUCHING
    # execute_request brings state back in do_execute, where it can wait and be refused.
    restores = touches and msg_type != "execute_request"

    @functools.wraps(handler)
    async def guarded(stream: Any, ident: Any, parent: dict[str, Any]) -> Any:
        await agent.pass_hold()
        if restores and agent.suspended:
            await agent.before_touch(msg_type)
        if restores:
            agent.touching(1)
        try:
            return await _finish(handler(stream, ident, parent))
        finally:
            if restores:
                agent.touching(-1)

    return guarded


def _control(kernel: Any, handler: Handler, msg_type: str, agent: Touchable) -> Handler:
    order = asyncio.Lock()

    @functools.wraps(handler)
    async def guarded(stream: Any, ident: Any, parent: dict[str, Any]) -> Any:
        harmless = (
            msg_type == "debug_request" and parent["content"].get("command") in _HARMLESS_DEBUG
        )
        if harmless or not (agent.suspended or order.locked()):
            agent.touching(1)
            try:
                return await _finish(handler(stream, ident, parent))
            finally:
                agent.touching(-1)

        # Control messages are handled one at a time: waiting here would hold up an interrupt.
        async def later() -> None:
            async with order:
                await agent.before_touch(msg_type)
                async with kernel._control_lock:
                    kernel.set_parent(ident, parent, channel="control")
                    agent.touching(1)
                    try:
                        await _finish(handler(stream, ident, parent))
                    finally:
                        agent.touching(-1)
                        sys.stdout.flush()
                        sys.stderr.flush()
                        kernel._publish_status_and_flush("idle", "control", stream, parent)

        # The request is not over when this returns, so the idle that follows must not name it.
        kernel.set_parent([], {}, channel="control")
        task = asyncio.ensure_future(later())
        _later.add(task)
        task.add_done_callback(_later.discard)
        return None

    return guarded


_later: set[asyncio.Task[None]] = set()


async def _finish(result: Any | Awaitable[Any]) -> Any:
    return await result if inspect.isawaitable(result) else result
