"""The control loop over a real store and simulated GPUs, with kernels that can misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loop_stage import GPU, Stage

from jupyter_gpu_predict.core.model import MIB, CellRun, LeaseState, Outcome, RiskLevel
from jupyter_gpu_predict.errors import ConflictError, RefusedError, StorageFullError
from jupyter_gpu_predict.store.trace_store import Store


def test_a_claim_takes_memory_back_and_is_granted_in_one_turn(play: Any) -> None:
    async def story(stage: Stage) -> None:
        idle, asks = await stage.kernel("idle", 400 * MIB), await stage.kernel("asks")
        stage.claim("asks", 300 * MIB)
        await stage.turn()
        assert stage.lease("idle").state is LeaseState.SUSPENDED
        assert stage.lease("asks").bytes == 300 * MIB
        assert asks.said[-1][:2] == ("bind", 300 * MIB)
        assert asks.said[-1][3] == "claim-asks"
        assert idle.record is not None
        assert (idle.record.used_bytes, idle.record.suspended_bytes) == (0, 400 * MIB)
        assert not stage.loop.claims

    play(story)


def test_a_refused_reclaim_books_nothing_and_is_not_tried_at_once_again(play: Any) -> None:
    async def story(stage: Stage) -> None:
        idle, asks = await stage.kernel("idle", 400 * MIB), await stage.kernel("asks")
        idle.refuses = RefusedError("a thread is at work")
        stage.claim("asks", 300 * MIB)
        await stage.turn()
        assert stage.lease("idle").state is LeaseState.BOUND
        assert stage.lease("asks").bytes == 0
        assert "reclaimed" not in stage.kinds()
        idle.refuses = None
        await stage.turn()
        assert stage.lease("idle").state is LeaseState.BOUND
        assert asks.said[-1][0] == "queue"
        stage.now += 6
        await stage.turn()
        assert stage.lease("idle").state is LeaseState.SUSPENDED
        assert stage.lease("asks").bytes == 300 * MIB

    play(story)


def test_a_grant_that_nobody_takes_is_put_back(play: Any) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("gone", 100 * MIB)
        await stage.loop.reclaim("gone", "test")
        epoch = stage.lease("gone").epoch
        port.deaf = ConflictError("the claim waits no more")
        stage.claim("gone", 100 * MIB)
        await stage.turn()
        lease = stage.lease("gone")
        assert lease.state is LeaseState.SUSPENDED
        assert lease.held_bytes == 0
        assert lease.epoch > epoch
        assert not stage.loop.claims
        assert "bound" not in stage.kinds()

    play(story)


def test_a_dead_kernels_lease_claims_and_record_go(play: Any) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("dies", 400 * MIB)
        await stage.kernel("waits")
        stage.claim("dies", 450 * MIB)
        waiting = stage.loop.settled(stage.claim("waits", 300 * MIB, origin="rest"))
        port.lives = False
        await stage.turn()
        assert stage.loop.leases.get("dies") is None
        assert "dies" not in stage.loop.kernels
        assert stage.lease("waits").bytes == 300 * MIB
        assert waiting.done()
        assert [x.kernel_id for x in stage.store.leases()] == ["waits"]

    play(story)


def test_a_kernel_that_took_more_than_its_lease_is_booked_and_others_make_room(play: Any) -> None:
    async def story(stage: Stage) -> None:
        await stage.kernel("idle", 300 * MIB)
        greedy = await stage.kernel("greedy")
        assert greedy.record is not None
        greedy.record.used_bytes = 400 * MIB
        greedy.record.last_used_s = stage.now
        await stage.turn()
        assert stage.lease("greedy").bytes == 400 * MIB
        assert stage.lease("idle").state is LeaseState.SUSPENDED

    play(story)


def test_memory_used_without_a_lease_gets_one(play: Any) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("free", 0)
        await stage.turn()
        await stage.loop.leases.release("free")
        assert port.record is not None
        port.record.used_bytes = 50 * MIB
        await stage.turn()
        assert stage.lease("free").bytes == 50 * MIB

    play(story)


def test_a_claim_past_its_deadline_is_refused_in_its_kernel(play: Any) -> None:
    async def story(stage: Stage) -> None:
        pinned, asks = await stage.kernel("pinned", 400 * MIB), await stage.kernel("asks")
        assert pinned.record is not None
        pinned.record.pinned = True
        claim = stage.claim("asks", 300 * MIB)
        await stage.turn()
        assert asks.said[-1][0] == "queue"
        stage.now = claim.deadline_s + 1
        await stage.turn()
        assert asks.said[-1][:2] == ("refuse", "claim-asks")
        assert not stage.loop.claims

    play(story)


def test_hard_evidence_stands_until_the_gpu_is_uncordoned(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.gpus.script_health(GPU, ecc_uncontained=1)
        await stage.turn()
        assert GPU in stage.loop.cordoned
        stage.gpus.script_health(GPU, ecc_uncontained=0)
        await stage.turn()
        assert stage.loop.risks[GPU].level is RiskLevel.CRITICAL
        stage.loop.uncordon(GPU)
        await stage.turn()
        assert stage.loop.risks[GPU].level is RiskLevel.NONE
        assert GPU not in stage.loop.cordoned

    play(story, gpus=2)


def test_moves_go_where_the_plan_says_and_failed_ones_pause_twice_as_long(play: Any) -> None:
    async def story(stage: Stage) -> None:
        class Moves:
            def __init__(self) -> None:
                self.tried: list[tuple[str, str, int | None]] = []

            async def migrate(
                self, kernel_id: str, target: str, _: str, *, wanted_bytes: int | None = None
            ) -> dict[str, Any]:
                self.tried.append((kernel_id, target, wanted_bytes))
                raise RefusedError("an open file")

        moves = Moves()
        stage.loop.moves = moves  # type: ignore[assignment]
        await stage.kernel("moves", 100 * MIB)
        stage.gpus.script_health(GPU, ecc_uncontained=1)

        async def turn(seconds: float) -> int:
            stage.now += seconds
            await stage.turn()
            await asyncio.sleep(0)
            for operation in list(stage.loop.operations._tasks):
                await stage.loop.operations.wait(operation)
            return len(moves.tried)

        assert await turn(0) == 1
        assert moves.tried[0] == ("moves", "SIM-GPU-1", 100 * MIB)
        assert await turn(9) == 1
        assert await turn(2) == 2
        assert await turn(11) == 2
        assert await turn(10) == 3

    play(story, gpus=2)


def test_idle_kernels_are_saved_and_a_save_that_fails_is_tried_again_later(play: Any) -> None:
    async def story(stage: Stage) -> None:
        class Saves:
            def __init__(self) -> None:
                self.tried: list[tuple[str, str]] = []
                self.fails = True

            async def take_snapshot(
                self, kernel_id: str, _: Any, __: str, *, cause: str, progress: Any
            ) -> dict[str, Any]:
                self.tried.append((kernel_id, cause))
                if self.fails:
                    raise StorageFullError("no room")
                record.saved(stage.now)
                return {}

        saves = Saves()
        stage.loop.saves = saves
        port = await stage.kernel("changed")
        record = port.record
        assert record is not None
        record.changed_s = stage.now

        async def turn(seconds: float) -> int:
            stage.now += seconds
            await stage.turn()
            for operation in list(stage.loop.operations._tasks):
                await stage.loop.operations.wait(operation)
            return len(saves.tried)

        assert await turn(599) == 0
        assert await turn(1) == 1
        assert saves.tried[0] == ("changed", "idle")
        assert await turn(9) == 1
        assert await turn(1) == 2
        assert await turn(19) == 2
        saves.fails = False
        assert await turn(1) == 3
        assert (record.changed_s, record.last_snapshot_s) == (None, stage.now)
        assert await turn(10_000) == 3

    play(story)


def test_prebinds_are_hits_only_when_a_cell_uses_them(play: Any) -> None:
    def run(peak: int) -> CellRun:
        return CellRun(
            "back", "back.ipynb", None, "d", 1.0, 2.0, peak, peak, "storages", 0, 1.0, Outcome.OK
        )

    async def story(stage: Stage) -> None:
        port = await stage.kernel("back")
        record = port.record
        assert record is not None
        stage.loop.prebound(record, GPU, 10, 0, "reserved")
        stage.loop.cell_started(record, "d")
        stage.loop.cell_ran(record, run(0))
        assert "prebind_hit" not in stage.kinds()
        stage.loop.cell_started(record, "d")
        stage.loop.cell_ran(record, run(5))
        assert stage.kinds().count("prebind_hit") == 1
        stage.loop.prebound(record, GPU, 10, 10, "restored")
        stage.loop.cell_started(record, "d")
        stage.loop.cell_started(record, "d")
        assert stage.kinds().count("prebind_hit") == 2

    play(story)


def test_the_event_log_holds_what_was_emitted(play: Any, tmp_path: Path) -> None:
    emitted: list[str] = []

    async def story(stage: Stage) -> None:
        await stage.kernel("one", 400 * MIB)
        await stage.kernel("two")
        stage.claim("two", 300 * MIB)
        await stage.turn()
        emitted.extend(stage.kinds())

    play(story)
    with Store(f"sqlite:///{tmp_path / 'state.db'}") as store:
        logged: Sequence[dict[str, Any]] = store.events()
    assert [e["kind"] for e in logged] == emitted
    assert {"claim", "reclaimed", "bound"} <= set(emitted)
