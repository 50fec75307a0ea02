"""Long-running work that a request starts and does not wait for."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConflictError, GpuPredictError, NotFoundError

WAITING = frozenset({"claim", "bind"})
"""Kinds that only wait for memory: they stand in each other's way only."""


@dataclass
class Operation:
    """A piece of long work; `state` is ``running``, ``done`` or ``failed``."""

    id: str
    kind: str
    kernel_id: str
    state: str
    progress: float
    started_s: float
    ended_s: float | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    code: str | None = None
    status: int = 200


class Operations:
    """Runs operations, one at a time per kernel, and keeps their outcome."""

    def __init__(
        self, clock: Callable[[], float], save: Callable[[dict[str, Any]], None], kept: int = 1000
    ) -> None:
        self._clock = clock
        self._save = save
        self._kept = kept
        self._all: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    def running_on(self, kernel_id: str, *, waiting: bool | None = None) -> Operation | None:
        """Return an operation that is under way on `kernel_id`.

        `waiting` looks only among those that wait for memory, or only among the others.
        """
        for operation in self._all.values():
            if operation.kernel_id != kernel_id or operation.state != "running":
                continue
            if waiting is None or waiting is (operation.kind in WAITING):
                return operation
        return None

    def start(
        self,
        kind: str,
        kernel_id: str,
        work: Callable[[Callable[[float], None]], Awaitable[dict[str, Any]]],
    ) -> Operation:
        """Start `work`, which is given a function to report its progress to.

        Raises
        ------
        ConflictError
            If another operation works on the same kernel.
        """
        other = self.running_on(kernel_id, waiting=kind in WAITING)
        if other is not None:
            raise ConflictError(
                f"kernel {kernel_id}: {other.kind} {other.id} is under way; "
                f"wait for it (operations/{other.id}) before another {kind}"
            )
        operation = Operation(uuid.uuid4().hex, kind, kernel_id, "running", 0.0, self._clock())
        self._all[operation.id] = operation
        self._forget_old()
        self._save(asdict(operation))
        task = asyncio.ensure_future(self._run(operation, work))
        self._tasks[operation.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(operation.id, None))
        return operation

    async def _run(
        self,
        operation: Operation,
        work: Callable[[Callable[[float], None]], Awaitable[dict[str, Any]]],
    ) -> None:
        def progress(done: float) -> None:
            operation.progress = max(operation.progress, min(1.0, done))

        try:
            operation.result = await work(progress)
            operation.state, operation.progress = "done", 1.0
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
        operation.ended_s = self._clock()
        self._save(asdict(operation))

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
