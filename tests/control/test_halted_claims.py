"""Who claims for kernels that stand still, how urgently, and what a claim for growth leaves."""

from __future__ import annotations

from typing import Any

import pytest
from loop_stage import Stage

from jupyter_gpu_predict.control.halted import UNASKED_S
from jupyter_gpu_predict.core.model import MIB, LeaseState, Rung
from jupyter_gpu_predict.errors import CheckpointRefusedError, LinkTimeoutError

FULL = CheckpointRefusedError("the GPU has 1 MiB free", "device_memory", "relaunch")


@pytest.mark.parametrize("agent", [True, False])
def test_a_cell_that_was_sent_since_and_is_not_answered_brings_its_kernel_back(
    play: Any, agent: bool
) -> None:
    """Its main thread may be stuck in a call to the GPU, and then says nothing at all."""

    async def story(stage: Stage) -> None:
        stage.driver()
        port = await stage.suspended("stuck", agent=agent)
        stage.now += 1
        port.record.unanswered(1, stage.now)
        stage.now += UNASKED_S
        await stage.until(lambda: not port.record.checkpointed and port.record.working is None)
        assert stage.lease("stuck").state is LeaseState.BOUND
        port.record.unanswered(0, stage.now)
        await stage.until(lambda: not stage.loop.claims)

    play(story)


def test_one_that_was_sent_before_does_not(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("idle", 400 * MIB)
        assert port.record is not None
        port.record.unanswered(1, stage.now - 1)
        driver.sizes["idle"] = 450 * MIB
        await stage.loop.reclaim("idle", "test")
        stage.now += 10 * UNASKED_S
        for _ in range(3):
            await stage.turn()
        assert port.record.checkpointed
        assert not stage.loop.claims

    play(story)


def test_a_halted_cell_is_as_urgent_as_it_was(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("long")
        record = port.record
        assert record is not None
        driver.sizes["long"] = 450 * MIB
        stage.claim("long", 400 * MIB, priority=1)
        await stage.until(port.granted)
        record.used_bytes = 400 * MIB
        stage.loop.cell_started(record, "digest")
        other = await stage.kernel("other", 100 * MIB)
        assert other.record is not None
        other.record.pinned = True
        await stage.loop.switching.suspend(
            "long", "test", rung=Rung.DRIVER_CHECKPOINT, mid_cell=True
        )
        await stage.turn()
        assert stage.loop.claims["halted-long"].priority == 1
        other.record.pinned = False
        await stage.until(lambda: not record.checkpointed and record.working is None)
        assert stage.view("long").priority == 1
        # The next cell states its own.
        stage.loop.cell_over(record)
        assert record.present_priority == 0

    play(story)


def test_a_cell_whose_kernel_failed_to_come_back_hears_when_it_is_tried_again(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended("idle")
        port.record.resume_failed(stage.now)
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.said[-1][0] == "queue")
        assert "tried again in 2 s" in port.said[-1][-1]
        assert ("resume", "idle", {}) not in driver.said
        stage.now += 2
        await stage.until(lambda: port.granted() == ["claim-idle"])

    play(story)


def grows(stage: Stage, name: str, size: int) -> None:
    stage.claim(name, size, origin="growth")


def test_a_running_cell_grows_and_its_kernel_hears_of_it(play: Any) -> None:
    async def story(stage: Stage) -> None:
        runs, idle = await stage.kernel("runs", 100 * MIB), await stage.kernel("idle", 300 * MIB)
        assert runs.record is not None
        stage.loop.cell_started(runs.record, "digest")
        grows(stage, "runs", 400 * MIB)
        await stage.until(lambda: runs.granted() == ["claim-runs"])
        assert [said[0] for said in idle.said] == ["reclaim"]
        assert stage.lease("runs").bytes == 400 * MIB
        assert runs.record.busy
        grows(stage, "runs", 513 * MIB)
        await stage.until(lambda: runs.said[-1][0] == "refuse")
        assert not stage.loop.claims
        assert stage.lease("runs").bytes == 400 * MIB

    play(story)


def test_a_grant_that_a_running_cell_does_not_hear_leaves_it_what_it_had(play: Any) -> None:
    async def story(stage: Stage) -> None:
        runs = await stage.kernel("runs")
        record = runs.record
        assert record is not None
        stage.claim("runs", 200 * MIB)
        await stage.until(runs.granted)
        stage.loop.cell_started(record, "digest")
        runs.deaf = LinkTimeoutError("it runs C code")
        grows(stage, "runs", 400 * MIB)
        await stage.until(lambda: not stage.loop.claims)
        assert stage.lease("runs").bytes == 200 * MIB

    play(story)
