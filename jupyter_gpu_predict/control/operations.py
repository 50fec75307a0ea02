"""Long-running work that a request starts and does not wait for."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConflictError, GpuPredictError, NotFoundError, SnapshotCancelledError

WAITING = frozenset({"claim", "bind"})
"""Kinds that only wait for memory: they stand in each other's way only."""

TELL_S = 1.0
"""Progress is told at most this often."""


@dataclass
class Operation:
    """A piece of long work; `state` is ``running``, ``done``, ``failed`` or ``cancelled``.

    `done_bytes` of `total_bytes` are saved or loaded, where bytes are what the work consists of.
    One that stands `aside` is in the way of others of its kind only. `cancellable` says that it
    can be cancelled now.
    """

    id: str
    kind: str
    kernel_id: str
    state: str
    progress: float
    started_s: float
    ended_s: float | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    aside: bool = False
    cancellable: bool = False
    result: dict[str, Any] | None = None
    error: str | None = None
    code: str | None = None
    status: int = 200


class Progress:
    """What running work says about itself; called with a number it sets the progress, 0 to 1."""

    def __init__(self, operation: Operation, told: Callable[[Operation], None]) -> None:
        self.operation = operation
        self.cancel: Callable[[], Awaitable[None]] | None = None
        self._told = told
        self._told_at = time.monotonic()

    def __call__(self, done: float) -> None:
        """Say how much is done; it never goes back."""
        self.operation.progress = max(self.operation.progress, min(1.0, done))
        if time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            self._told(self.operation)

    def bytes(self, done_bytes: int, total_bytes: int) -> None:
        """Say how many bytes are done, and of how many."""
        self.operation.done_bytes = done_bytes
        self.operation.total_bytes = total_bytes
        self(done_bytes / total_bytes if total_bytes else 0.0)

    def step_aside(self) -> None:
        """Let other kinds of work begin beside this one."""
        self.operation.aside = True

    def cancellable(self, cancel: Callable[[], Awaitable[None]] | None) -> None:
        """Let it be cancelled by `cancel` from now on, or with ``None`` no more."""
        self.cancel = cancel
        self.operation.cancellable = cancel is not None


Work = Callable[[Progress], Awaitable[dict[str, Any]]]


class Operations:
    """Runs operations, one at a time per kernel, and keeps their outcome."""

    def __init__(
        self,
        clock: Callable[[], float],
        save: Callable[[dict[str, Any]], None],
        kept: int = 1000,
        told: Callable[[Operation], None] | None = None,
    ) -> None:
        self._clock = clock
        self._save = save
        self._kept = kept
        self._told = told or (lambda _: None)
        self._all: dict[str, Operation] = {}
        self._progress: dict[str, Progress] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def running_on(self, kernel_id: str, *, waiting: bool | None = None) -> Operation | None:
        """Return an operation that is under way on `kernel_id`.

        `waiting` looks only among those that wait for memory, or only among the others.
        """
        for operation in self._running(kernel_id):
            if waiting is None or waiting is (operation.kind in WAITING):
                return operation
        return None

    def saving(self, kernel_id: str) -> bool:
        """Whether a snapshot of the kernel is being taken."""
        return any(o.kind == "snapshot" for o in self._running(kernel_id))

    def _running(self, kernel_id: str) -> list[Operation]:
        return [o for o in self._all.values() if o.kernel_id == kernel_id and o.state == "running"]

    def start(self, kind: str, kernel_id: str, work: Work) -> Operation:
        """Start `work`, which is given a `Progress` to speak through.

        Raises
        ------
        ConflictError
            If another operation works on the same kernel.
        """
        for other in self._running(kernel_id):
            apart = (other.kind in WAITING) is not (kind in WAITING)
            if apart or (other.aside and other.kind != kind):
                continue
            raise ConflictError(
                f"kernel {kernel_id}: {other.kind} {other.id} is under way; "
                f"wait for it (operations/{other.id}) before another {kind}"
            )
        operation = Operation(uuid.uuid4().hex, kind, kernel_id, "running", 0.0, self._clock())
        self._all[operation.id] = operation
        self._progress[operation.id] = Progress(operation, self._told)
        self._forget_old()
        self._save(asdict(operation))
        self._told(operation)
        task = asyncio.ensure_future(self._run(operation, work))
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))
        return operation

    async def _run(self, operation: Operation, work: Work) -> None:
        try:
            operation.result = await work(self._progress[operation.id])
            operation.state, operation.progress = "done", 1.0
        except SnapshotCancelledError as error:
            operation.state, operation.error = "cancelled", str(error)
            operation.code, operation.status = error.reason, error.status
        except GpuPredictError as error:
            operation.state, operation.error = "failed", str(error)
            operation.code, operation.status = error.reason, error.status
        except asyncio.CancelledError:
            operation.state, operation.error = "failed", "the server was stopped half way"
            operation.code, operation.status = "cancelled", 503
        except Exception as error:
            operation.state = "failed"
            operation.error = f"{type(error).__name__}: {error}"
            operation.code, operation.status = "internal", 500
        self._progress.pop(operation.id).cancellable(None)
        operation.ended_s = self._clock()
        self._save(asdict(operation))
        self._told(operation)

    async def cancel(self, operation_id: str) -> Operation:
        """Ask an operation to stop, and return it; its end says whether it did.

        Raises
        ------
        NotFoundError
            If there is none of that id.
        ConflictError
            If it is over, or of a kind or at a point where it cannot be cancelled.
        """
        operation = self.get(operation_id)
        if operation.state != "running":
            raise ConflictError(f"operation {operation_id} is {operation.state} already")
        cancel = self._progress[operation_id].cancel
        if cancel is None:
            raise ConflictError(
                f"operation {operation_id} ({operation.kind}) cannot be cancelled at this point"
            )
        await cancel()
        return operation

    async def wait(self, operation_id: str) -> Operation:
        """Wait for the operation's end and return it."""
        if (task := self._tasks.get(operation_id)) is not None:
            await asyncio.wait([task])
        return self.get(operation_id)

    def get(self, operation_id: str) -> Operation:
        """Return an operation.

        Raises
        ------
        NotFoundError
            If there is none of that id.
        """
        if operation_id not in self._all:
            raise NotFoundError(f"operation {operation_id!r} does not exist")
        return self._all[operation_id]

    async def close(self) -> None:
        """Cancel what is still under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget_old(self) -> None:
        for key in [k for k, o in self._all.items() if o.state != "running"]:
            if len(self._all) <= self._kept:
                return
            del self._all[key]
