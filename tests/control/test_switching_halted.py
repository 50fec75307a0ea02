"""Kernels that stand still in the driver's hands: who claims for them; the driver is a fake."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from loop_stage import GPU, Agent, Stage

from jupyter_gpu_predict.control.halted import UNASKED_S
from jupyter_gpu_predict.control.switching import PlanOvertaken
from jupyter_gpu_predict.core.model import MIB, LeaseState, Rung
from jupyter_gpu_predict.errors import (
    CheckpointRefusedError,
    RefusedError,
)

FULL = CheckpointRefusedError("the GPU has 1 MiB free", "device_memory", "relaunch")


def test_a_kernel_without_agent_comes_back_when_it_is_at_work(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.driver()
        port = await stage.suspended("r", agent=False)
        await stage.turn()
        assert not stage.loop.claims
        stage.loop.cell_started(port.record, None)
        await stage.until(lambda: not port.record.checkpointed and port.record.working is None)
        assert [d["origin"] for kind, d in stage.events if kind == "claim"] == ["cell"]
        assert not stage.loop.claims
        assert port.said == []
        assert stage.lease("r").state is LeaseState.BOUND

    play(story)


def test_a_cell_suspended_in_its_middle_claims_until_it_goes_on(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port, other = await stage.kernel("long", 400 * MIB), await stage.kernel("short")
        record = port.record
        assert record is not None
        driver.sizes["long"] = 450 * MIB
        stage.loop.cell_started(record, "digest")
        stage.now += 100
        assert stage.view("long").attained_s == 100
        with pytest.raises(PlanOvertaken, match="runs a cell"):
            await stage.loop.switching.suspend("long", "test", rung=Rung.DRIVER_CHECKPOINT)
        await stage.loop.switching.suspend(
            "long", "test", "short", rung=Rung.DRIVER_CHECKPOINT, mid_cell=True
        )
        assert port.said == []
        assert driver.halted == {"long"}
        await stage.loop.leases.bind("short", GPU, 300 * MIB)
        assert other.record is not None
        other.record.used_bytes = 300 * MIB
        stage.loop.cell_started(other.record, "other")
        stage.now += 1000
        await stage.turn()
        claim = stage.loop.claims["halted-long"]
        assert (claim.origin, claim.bytes, claim.deadline_s) == ("preempted", 450 * MIB, math.inf)
        assert claim.made_s == record.preempted_s == stage.now - 1000
        view = stage.view("long")
        assert (view.attained_s, view.switched_s) == (100, record.preempted_s)
        stage.loop.cell_over(other.record)
        other.record.used_bytes = 0
        stage.now += 50
        await stage.until(lambda: not record.checkpointed and record.working is None)
        assert record.preempted_s is None
        assert record.switched_s == stage.now
        assert port.granted() == []
        stage.now += 7
        assert stage.view("long").attained_s == 107

    play(story)


def test_a_halted_cell_that_ends_by_itself_claims_no_more_and_the_next_one_claims(
    play: Any,
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("long", 400 * MIB)
        other = await stage.kernel("other", 100 * MIB)
        record = port.record
        assert record is not None
        assert other.record is not None
        driver.sizes["long"] = 450 * MIB
        stage.loop.cell_started(record, "digest")
        await stage.loop.switching.suspend(
            "long", "test", rung=Rung.DRIVER_CHECKPOINT, mid_cell=True
        )
        # Nothing comes free: the other one is pinned.
        other.record.pinned = True
        await stage.turn()
        assert "halted-long" in stage.loop.claims
        stage.loop.cell_over(record)
        await stage.until(lambda: "halted-long" not in stage.loop.claims)
        await stage.until(lambda: ("bind", 0) in [said[:2] for said in port.said])
        assert record.preempted_s is None
        assert record.checkpointed

    play(story)


def test_what_is_stuck_on_memory_that_the_driver_has_is_noticed(play: Any) -> None:
    """Shift-Tab on a tensor claims nothing, and does not return."""

    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        port.record.shell_busy_s = stage.now
        await stage.turn()
        assert port.record.checkpointed
        stage.now += UNASKED_S
        await stage.until(lambda: not port.record.checkpointed)
        assert ("resume", "idle", {}) in driver.said

    play(story)


def test_a_halted_cell_is_tried_again_ever_more_rarely(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended("r", agent=False)
        driver.fails["resume"] = FULL
        stage.loop.cell_started(port.record, None)
        times = []
        for _ in range(40):
            before = len(driver.said)
            await stage.turn()
            await stage.until(lambda: port.record.working is None)
            if len(driver.said) > before:
                times.append(stage.now)
            stage.now += 1
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert gaps[:3] == sorted(gaps[:3])
        assert gaps[2] > gaps[0]
        driver.fails.clear()
        stage.now += 60
        await stage.until(lambda: not port.record.checkpointed)

    play(story)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_cell_that_ends_in_the_drivers_hands_leaves_a_kernel_that_knows_it(
    play: Any, refuses: bool
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("long", 400 * MIB)
        agent, record = Agent(port), port.record
        assert record is not None
        driver.sizes["long"] = 450 * MIB
        stage.loop.cell_started(record, "digest")
        await stage.loop.switching.suspend(
            "long", "test", rung=Rung.DRIVER_CHECKPOINT, mid_cell=True
        )
        if refuses:
            agent.refuses = RefusedError("thread 'train' is at work")
        stage.loop.cell_over(record)
        await stage.until(lambda: agent.known is not None)
        assert agent.known is not None
        assert (agent.known.bytes, agent.checkpointed) == (0, not refuses)

    play(story)
