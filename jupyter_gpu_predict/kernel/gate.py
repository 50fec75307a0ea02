"""The gate in front of each cell: it waits for a grant, or refuses before user code runs.

Waiting happens in `do_execute`, where the event loop lives on and an interrupt can be seen; the
refusal is raised by an AST transformer, so that the cell ends with one clear error and a run-all
behind it is aborted. Blocking in `pre_run_cell` would swallow the interrupt and then run the cell.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import contextvars
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .messages import ClaimEndMessage, ClaimMessage

if TYPE_CHECKING:
    from .link import KernelLink

REPEAT_S = 2.0
"""A claim is repeated this often until the server answers: iopub loses messages by design."""

SHOW_AFTER_S = 1.0
"""A wait shorter than this shows nothing."""

_refusal: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "gpu_predict_refusal", default=None
)


@dataclass(frozen=True)
class Grant:
    """The server's yes to a claim."""

    gpu_uuid: str
    bytes: int
    epoch: int


class ClaimRefused(Exception):  # noqa: N818 - it is what happened, not a fault of ours
    """A claim that ended without a grant; the message is for the user.

    `waited_for` is what the server last said of a claim that nobody refused: who holds the memory.
    """

    def __init__(self, message: str, waited_for: str | None = None) -> None:
        super().__init__(message)
        self.waited_for = waited_for


def install_refusal(shell: Any) -> None:
    """Let a refused cell end before any of its code runs."""
    from IPython.core.error import InputRejected

    class GpuRefused(InputRejected):  # type: ignore[misc]
        """The cell did not run: it needs GPU memory that it did not get."""

        def _render_traceback_(self) -> list[str]:
            return [f"GpuRefused: {self}"]

    class Refuser(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            if (why := _refusal.get()) is not None:
                raise GpuRefused(why)
            return node

    shell.ast_transformers.insert(0, Refuser())


@contextlib.contextmanager
def refusing(why: str | None) -> Iterator[None]:
    """Refuse every cell inside the block with `why`, or none if it is ``None``."""
    token = _refusal.set(why)
    try:
        yield
    finally:
        _refusal.reset(token)


@contextlib.contextmanager
def _cancelled_by_interrupt(future: asyncio.Future[Any]) -> Iterator[None]:
    # ipykernel's own handler schedules through add_callback, which does not wake a sleeping loop.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = future.get_loop()
    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(future.cancel))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Gate:
    """Claims memory for a cell and waits for the grant."""

    def __init__(self, link: KernelLink, deadline_s: float) -> None:
        self.link = link
        self.deadline_s = deadline_s
        self._waiting: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Future[Grant]]] = {}
        self._asked: dict[str, Callable[[str, Grant | None], bool]] = {}
        self._notes: dict[str, WaitNote] = {}
        self._reasons: dict[str, str] = {}

    @property
    def waiting(self) -> bool:
        """Whether something waits for a grant now."""
        return bool(self._waiting)

    def clear_notes(self) -> None:
        """Take every line about waiting away."""
        for note in self._notes.values():
            note.clear()

    async def claim(
        self,
        wanted_bytes: int,
        *,
        priority: int = 0,
        affinity: str | None = None,
        critical: bool = False,
        origin: str = "cell",
        deadline_s: float | None = None,
        show: bool = True,
    ) -> Grant:
        """Ask for `wanted_bytes` in all and wait.

        Raises
        ------
        ClaimRefused
            If the wait was interrupted, refused, or its deadline passed.
        """
        deadline_s = self.deadline_s if deadline_s is None else deadline_s
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[Grant] = loop.create_future()
        message = _message(
            wanted_bytes,
            deadline_s,
            priority=priority,
            affinity=affinity,
            critical=critical,
            origin=origin,
        )
        note = WaitNote(self.link.kernel) if show else None
        if note is not None:
            self._notes[message.claim_id] = note
        self._waiting[message.claim_id] = loop, granted
        repeat = asyncio.ensure_future(self._repeat(message))
        why = "interrupted"
        try:
            with _cancelled_by_interrupt(granted):
                return await asyncio.wait_for(granted, deadline_s)
        except asyncio.CancelledError:
            raise ClaimRefused(
                "The wait for GPU memory was interrupted; the cell did not run.",
                "The wait for it was interrupted.",
            ) from None
        except asyncio.TimeoutError:
            why = "deadline"
            raise ClaimRefused(
                f"No {_mib(wanted_bytes)} of GPU memory within {deadline_s:g} s; the cell did not "
                "run. Run it again, ask for less, or raise the deadline "
                "(GpuPredict.claim_deadline_s).",
                self._reasons.get(message.claim_id, f"It was not there within {deadline_s:g} s."),
            ) from None
        finally:
            repeat.cancel()
            del self._waiting[message.claim_id]
            self._reasons.pop(message.claim_id, None)
            if note is not None:
                del self._notes[message.claim_id]
                note.clear()
            if not granted.done() or granted.cancelled():
                self.link.notify(ClaimEndMessage(message.claim_id, why))

    def ask(
        self,
        wanted_bytes: int,
        answered: Callable[[str, Grant | None], bool],
        *,
        priority: int,
        affinity: str | None,
        deadline_s: float,
    ) -> str:
        """Ask for `wanted_bytes` in all for a cell that runs on; return the claim's id.

        `answered` is called with the id and the grant, ``None`` for a refusal, from any thread.
        """
        message = _message(
            wanted_bytes, deadline_s, priority=priority, affinity=affinity, origin="growth"
        )
        self._asked[message.claim_id] = answered
        self.link.notify(message)
        return message.claim_id

    def withdraw(self, claim_id: str, why: str) -> None:
        """Ask no more."""
        if self._asked.pop(claim_id, None) is not None:
            self.link.notify(ClaimEndMessage(claim_id, why))

    async def _repeat(self, message: ClaimMessage) -> None:
        while True:
            self.link.notify(message)
            await asyncio.sleep(REPEAT_S)

    def grant(self, claim_id: str, grant: Grant) -> bool:
        """Wake the claim; false if it waits no more. Safe from any thread."""
        if (answered := self._asked.pop(claim_id, None)) is not None:
            return answered(claim_id, grant)
        return self._settle(claim_id, lambda future: future.set_result(grant))

    def refuse(self, claim_id: str, reason: str) -> bool:
        """End the claim with `reason`; false if it waits no more. Safe from any thread."""
        if (answered := self._asked.pop(claim_id, None)) is not None:
            return answered(claim_id, None)
        return self._settle(claim_id, lambda future: future.set_exception(ClaimRefused(reason)))

    def _settle(self, claim_id: str, settle: Any) -> bool:
        if claim_id not in self._waiting:
            return False
        loop, future = self._waiting[claim_id]
        loop.call_soon_threadsafe(lambda: future.done() or settle(future))
        return True

    def queued(self, claim_id: str, position: int, wait_s: float | None, reason: str) -> bool:
        """Show the claim's place in the queue in its cell's output area."""
        waits, note = claim_id in self._waiting, self._notes.get(claim_id)
        if waits:
            self._reasons[claim_id] = reason
        if note is None or not waits:
            return waits
        loop, _ = self._waiting[claim_id]
        loop.call_soon_threadsafe(note.show, position, wait_s, reason)
        return True


class WaitNote:
    """One line in the cell's output area while it waits, gone before the cell starts."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.parent = kernel.get_parent("shell")
        self.made_s = time.monotonic()
        self.display_id = f"gpu-wait-{uuid.uuid4().hex}"
        self.shown = False

    def show(self, position: int, wait_s: float | None, reason: str) -> None:
        """Say the place in the queue and the expected wait."""
        if time.monotonic() - self.made_s < SHOW_AFTER_S or self._silent():
            return
        expected = "unknown wait" if wait_s is None else f"about {max(1, round(wait_s))} s"
        text = f"Waiting for GPU memory: place {position} in the queue, {expected}. {reason}"
        self._send(
            "update_display_data" if self.shown else "display_data",
            {
                "data": {"text/plain": text},
                "metadata": {},
                "transient": {"display_id": self.display_id},
            },
        )
        self.shown = True

    def clear(self) -> None:
        """Take the line away, so that the cell's outputs are those of a plain run."""
        if self.shown:
            self._send("clear_output", {"wait": False})

    def _silent(self) -> bool:
        return bool(self.parent.get("content", {}).get("silent", False))

    def _send(self, msg_type: str, content: dict[str, Any]) -> None:
        self.kernel.session.send(
            self.kernel.iopub_socket,
            msg_type,
            content,
            parent=self.parent,
            ident=self.kernel._topic(msg_type),
        )


def _mib(n: int) -> str:
    return f"{n / (1 << 20):.1f} MiB"


def _message(wanted_bytes: int, deadline_s: float, **about: Any) -> ClaimMessage:
    """Return a new claim made now, which ends in `deadline_s` seconds."""
    now = time.time()
    return ClaimMessage(
        claim_id=uuid.uuid4().hex,
        bytes=wanted_bytes,
        deadline_s=now + deadline_s,
        made_s=now,
        **about,
    )
