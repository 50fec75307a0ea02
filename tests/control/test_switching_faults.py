"""Rung 2 in the loop when something comes in between; the driver is a fake."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from loop_stage import GPU, Agent, Stage

from jupyter_gpu_predict.control.observe import build_view
from jupyter_gpu_predict.control.switching import PlanOvertaken
from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import GIB, MIB, LeaseState, Rung
from jupyter_gpu_predict.core.plans import Plan, Prebind, Resize
from jupyter_gpu_predict.errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
    RefusedError,
)

REFUSED = CheckpointRefusedError("the GPU is cut into MIG slices", "mig", "in_place")
BUSY = RefusedError("kernel idle is running a cell")


@pytest.mark.parametrize("bound_by", ["claim", "prebind"])
def test_a_restart_while_the_old_process_comes_back_leaves_the_new_lease_alone(
    play: Any, bound_by: str
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        driver.gate = asyncio.Event()
        driver.fails["resume"] = CheckpointFailedError("gone", "gone")
        if bound_by == "claim":
            stage.claim("idle", 450 * MIB)
        else:
            prebind = Prebind("idle", GPU, 450 * MIB, "test")
            await stage.loop.reconciler.carry_out(Plan(0.0, (prebind,)))
        await stage.until(lambda: ("resume", "idle", {}) in driver.said)
        await stage.loop.kernel_ended("idle", "restarted")
        await stage.kernel("idle", 300 * MIB)
        lease = stage.lease("idle")
        driver.gate.set()
        await stage.until(lambda: port.record.working is None)
        assert stage.lease("idle") == lease

    play(story)


def test_whoever_waits_for_a_claim_hears_of_a_fault_that_nobody_thought_of(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        driver.fails["resume"] = OSError("no more file descriptors")
        waits = stage.loop.settled(stage.claim("idle", 450 * MIB, origin="api"))
        await stage.until(waits.done)
        assert "cut short" in str(waits.exception())
        await stage.until(lambda: port.record.working is None)

    play(story)


def test_a_kernel_that_ends_while_the_driver_takes_it_costs_the_loop_nothing(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        old = await stage.kernel("idle", 400 * MIB)
        driver.sizes["idle"] = 450 * MIB
        suspend = driver.suspend

        async def ends(*args: Any, **more: Any) -> Any:
            done = await suspend(*args, **more)
            await stage.loop.kernel_ended("idle", "restarted")
            await stage.kernel("idle", 10 * MIB)
            return done

        driver.suspend = ends  # type: ignore[method-assign]
        with pytest.raises(PlanOvertaken, match="ended meanwhile"):
            await stage.loop.reclaim("idle", "test")
        assert old.record is not None
        assert not old.record.checkpointed
        assert (stage.lease("idle").state, stage.lease("idle").bytes) == (
            LeaseState.BOUND,
            10 * MIB,
        )

    play(story)


def test_a_cell_of_which_nobody_was_told_is_not_suspended(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("idle", 400 * MIB)
        agent = Agent(port)
        agent.refuses = BUSY
        await stage.kernel("asks")
        stage.claim("asks", 300 * MIB)
        record = port.record
        assert record is not None
        await stage.until(lambda: record.keep_reason == str(BUSY) and record.working is None)
        assert driver.said == []
        assert stage.lease("idle").state is LeaseState.BOUND

    play(story)


def test_a_kernel_without_agent_that_jupyter_sees_at_work_is_not_suspended(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("r", 400 * MIB, agent=False)
        assert port.record is not None
        port.record.shell_busy_s = stage.now
        with pytest.raises(PlanOvertaken, match="runs a cell"):
            await stage.loop.reclaim("r", "test")
        assert driver.said == []

    play(story)


@pytest.mark.parametrize("why", ["thread", "processes", "gpus", "snapshot"])
def test_what_would_be_frozen_for_good_is_not_given_to_the_driver(play: Any, why: str) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("idle", 400 * MIB)
        driver.sizes["idle"] = 450 * MIB
        record = port.record
        assert record is not None
        ends = asyncio.Event()

        async def save(_: Any) -> dict[str, Any]:
            await ends.wait()
            return {}

        if why == "thread":
            record.keep("thread 'train' is at work", stage.now + 100)
        elif why == "processes":
            record.gpu_processes = 2
        elif why == "gpus":
            record.process_bytes = {GPU: 1, "GPU-2": 1}
        else:
            stage.loop.operations.start("snapshot", "idle", save)
        view = build_view(stage.loop).kernels[0]
        assert view.suspend_by is (None if why == "thread" else Rung.IN_PLACE)
        # Halted in the middle of a cell, a thread goes on together with the cell.
        assert (view.why_not_preempt is None) is (why == "thread")
        ends.set()

    play(story)


@pytest.mark.parametrize("fault", ["refused by the driver", "kept", "heard late"])
def test_after_a_suspension_that_came_to_nothing_the_kernel_still_hears_the_server(
    play: Any, fault: str
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("idle", 400 * MIB)
        agent = Agent(port)
        if fault == "refused by the driver":
            driver.fails["suspend"] = REFUSED
            port.refuses = RefusedError("thread 'train' is at work")
        elif fault == "kept":
            agent.refuses = BUSY
        else:
            agent.hears_late = True
        with pytest.raises(PlanOvertaken):
            await stage.loop.reclaim("idle", "test")
        resize = Resize("idle", 350 * MIB, "test")
        await stage.loop.reconciler.carry_out(Plan(0.0, (resize,)))
        assert agent.known is not None
        assert (agent.known.bytes, agent.known.epoch) == (350 * MIB, stage.lease("idle").epoch)

    play(story)


def test_a_reading_from_before_the_way_back_books_nothing(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.driver()
        port = await stage.suspended("r", agent=False)
        go, read = threading.Event(), stage.loop.facts._read

        def slow(records: Any) -> Any:
            seen = read(records)
            go.wait(10)
            return seen

        stage.loop.facts._read = slow  # type: ignore[method-assign]
        turn = asyncio.ensure_future(stage.loop.facts.gather())
        lease = await stage.loop.leases.bind("r", GPU, 450 * MIB)
        await stage.loop.switching.resume(port.record, lease)
        go.set()
        await turn
        assert port.record.used_bytes == 400 * MIB
        assert stage.lease("r").bytes == 450 * MIB

    play(story)


def test_while_the_driver_takes_one_kernel_the_others_turns_go_on(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        idle, asks = await stage.kernel("idle", 300 * MIB), await stage.kernel("asks")
        spare, dead = await stage.kernel("spare", 200 * MIB), await stage.kernel("dead")
        driver.sizes |= {"idle": 300 * MIB, "spare": 200 * MIB}
        goes_on, suspend = asyncio.Event(), driver.suspend

        async def slow(*args: Any, **more: Any) -> Any:
            await goes_on.wait()
            return await suspend(*args, **more)

        driver.suspend = slow  # type: ignore[method-assign]
        stage.claim("asks", 200 * MIB)
        dead.lives = False
        await stage.until(lambda: "dead" not in stage.loop.kernels)
        for _ in range(3):
            stage.now += 1
            await stage.turn()
        records = idle.record, spare.record
        # Only one of them has to go, and no other one does meanwhile.
        assert [r.working for r in records if r is not None].count("reclaim") == 1
        assert asks.granted() == []
        goes_on.set()
        await stage.until(lambda: asks.granted() == ["claim-asks"])
        assert [r.checkpointed for r in records if r is not None].count(True) == 1

    play(story)


def test_what_has_just_failed_to_come_back_is_not_fetched_ahead_of_use(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        port.record.resume_failed(stage.now)
        plan = Plan(0.0, (Prebind("idle", GPU, 450 * MIB, "test"),))
        await stage.loop.reconciler.carry_out(plan)
        await stage.turn()
        assert ("resume", "idle", {}) not in driver.said
        stage.now += 60
        await stage.loop.reconciler.carry_out(plan)
        await stage.until(lambda: not port.record.checkpointed)

    play(story)


def test_one_that_the_driver_holds_half_way_gives_no_slack(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.driver()
        port = await stage.kernel("idle", 100 * MIB)
        await stage.loop.leases.resize("idle", 500 * MIB)
        await stage.kernel("asks")
        stage.claim("asks", 300 * MIB)
        assert port.record is not None
        sizes = [a.bytes for a in decide(build_view(stage.loop)).actions if isinstance(a, Resize)]
        assert sizes
        assert sizes[0] < 500 * MIB < GIB
        port.record.held_by_driver(0, 100 * MIB, stage.now)
        assert not any(isinstance(a, Resize) for a in decide(build_view(stage.loop)).actions)

    play(story)


def test_nothing_is_begun_for_a_process_that_is_gone(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("idle", 400 * MIB)
        port.lives = False
        with pytest.raises(PlanOvertaken, match="no process"):
            await stage.loop.reclaim("idle", "test")
        assert driver.said == []

    play(story)
