"""Calls of the magics, answered over the kernel link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ..errors import GpuPredictError, NotFoundError
from ..kernel import messages as m
from .inputs import size_bytes

if TYPE_CHECKING:
    from .api import Api
    from .fleet import Fleet

log = logging.getLogger(__name__)


class Calls:
    """Answers what a kernel's `%gpu` asks about itself and its GPUs."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.api: Api | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, kernel_id: str, call: m.CallMessage) -> None:
        """Answer in the background."""
        task = asyncio.ensure_future(self._answer(kernel_id, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, kernel_id: str, call: m.CallMessage) -> None:
        try:
            result = self._method(kernel_id, call.method)(dict(call.params))
            if asyncio.iscoroutine(result):
                result = await result
            answer = m.AnswerRequest(call.call_id, True, result)
        except GpuPredictError as error:
            answer = m.AnswerRequest(call.call_id, False, None, str(error))
        link = self.fleet.links.get(kernel_id)
        if link is None:
            return
        try:
            await link.request(answer, 10.0)
        except GpuPredictError as error:
            log.warning(
                "Kernel %s did not take the answer to %s: %s", kernel_id, call.method, error
            )

    def _method(
        self, kernel_id: str, name: str
    ) -> Callable[[dict[str, Any]], Any | Awaitable[Any]]:
        api = self.api
        if api is None:
            raise NotFoundError("the server is still starting; try again")
        methods: dict[str, Callable[[dict[str, Any]], Any | Awaitable[Any]]] = {
            "status": lambda _: {**api.gpus(), "kernel": api.kernel(kernel_id)},
            "forecast": lambda _: api.forecast(kernel_id),
            "trace": lambda _: api.trace(kernel_id),
            "why": lambda _: api.why(kernel_id),
            "history": lambda p: api.history(
                kernel_id, min(1000, size_bytes(p.get("limit", 50), "limit"))
            ),
            "pin": lambda _: api.pin(kernel_id, pinned=True),
            "unpin": lambda _: api.pin(kernel_id, pinned=False),
            "release": lambda _: api.operation(api.reclaim(kernel_id, {"wait": True}).id),
            "migrate": lambda p: api.operation(api.migrate(kernel_id, p).id),
            "snapshots": lambda _: api.snapshots(),
            "snapshot_taken": lambda p: api.note_snapshot(kernel_id, p),
            "snapshot_restored": lambda p: api.note_restore(kernel_id, p),
            "operation": lambda p: api.operation(str(p.get("id"))),
        }
        if name not in methods:
            raise NotFoundError(f"the server knows no call {name!r}")
        return methods[name]
