"""Long work: one at a time per kernel, aside when it is in nobody's way, cancelled when asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jupyter_gpu_predict.control.operations import Operation, Operations, Progress
from jupyter_gpu_predict.errors import ConflictError, NotFoundError, SnapshotCancelledError


class Desk:
    """Operations with everything that they said."""

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []
        self.told: list[tuple[str, str]] = []
        self.operations = Operations(
            lambda: 5.0, self.saved.append, told=lambda o: self.told.append((o.kind, o.state))
        )
        self.at: dict[str, Progress] = {}
        self.ends: dict[str, asyncio.Future[dict[str, Any]]] = {}

    def start(self, kind: str, kernel: str = "k") -> Operation:
        end: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        async def work(progress: Progress) -> dict[str, Any]:
            self.at[kind] = progress
            return await end

        operation = self.operations.start(kind, kernel, work)
        self.ends[operation.id] = end
        return operation


def play(story: Callable[[Desk], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        desk = Desk()
        try:
            await story(desk)
        finally:
            await desk.operations.close()

    asyncio.run(whole())


def test_work_that_stands_aside_stops_only_its_own_kind() -> None:
    async def story(desk: Desk) -> None:
        snapshot = desk.start("snapshot")
        await asyncio.sleep(0)
        with pytest.raises(ConflictError, match=snapshot.id):
            desk.start("migrate")
        desk.at["snapshot"].step_aside()
        with pytest.raises(ConflictError, match=snapshot.id):
            desk.start("snapshot")
        moves = desk.start("migrate")
        assert desk.operations.saving("k")
        desk.ends[snapshot.id].set_result({})
        await desk.operations.wait(snapshot.id)
        assert not desk.operations.saving("k")
        with pytest.raises(ConflictError, match=moves.id):
            desk.start("snapshot")

    play(story)


def test_bytes_are_progress_and_progress_never_goes_back() -> None:
    async def story(desk: Desk) -> None:
        operation = desk.start("snapshot")
        await asyncio.sleep(0)
        tell = desk.at["snapshot"]
        tell.bytes(30, 40)
        assert (operation.done_bytes, operation.total_bytes, operation.progress) == (30, 40, 0.75)
        tell.bytes(0, 0)
        tell(0.5)
        assert operation.progress == 0.75
        desk.ends[operation.id].set_result({"x": 1})
        ended = await desk.operations.wait(operation.id)
        assert (ended.state, ended.progress, ended.result) == ("done", 1.0, {"x": 1})
        assert desk.told == [("snapshot", "running"), ("snapshot", "done")]
        assert [s["state"] for s in desk.saved] == ["running", "done"]

    play(story)


def test_only_what_can_be_cancelled_is_and_only_while_it_runs() -> None:
    async def story(desk: Desk) -> None:
        operation = desk.start("restore")
        await asyncio.sleep(0)
        with pytest.raises(ConflictError, match="cannot be cancelled"):
            await desk.operations.cancel(operation.id)
        end = desk.ends[operation.id]

        async def cancel() -> None:
            end.set_exception(SnapshotCancelledError("as asked"))

        desk.at["restore"].cancellable(cancel)
        assert operation.cancellable
        await desk.operations.cancel(operation.id)
        ended = await desk.operations.wait(operation.id)
        assert (ended.state, ended.code, ended.status) == ("cancelled", "snapshot_cancelled", 409)
        assert (ended.error, ended.cancellable) == ("as asked", False)
        with pytest.raises(ConflictError, match="cancelled already"):
            await desk.operations.cancel(operation.id)
        with pytest.raises(NotFoundError, match="nobody"):
            await desk.operations.cancel("nobody")

    play(story)
