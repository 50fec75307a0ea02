"""Rung 2 in the loop: the driver takes kernels and brings them back; the driver is a fake."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from loop_stage import GPU, Driver, Stage

from jupyter_gpu_predict.control.bursts import GAP_S, Burst
from jupyter_gpu_predict.control.halted import UNASKED_S
from jupyter_gpu_predict.control.observe import build_view
from jupyter_gpu_predict.control.ports import RESUME_MARGIN_BYTES
from jupyter_gpu_predict.control.rungs import choose_move
from jupyter_gpu_predict.control.switching import PlanOvertaken
from jupyter_gpu_predict.core.migration.cost import Bandwidths, Transfer
from jupyter_gpu_predict.core.model import GIB, MIB, KernelView, LeaseState, Rung
from jupyter_gpu_predict.errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
    ConflictError,
    RefusedError,
    StoreError,
)

REFUSED = CheckpointRefusedError("the GPU is cut into MIG slices", "mig", "in_place")
HELD = CheckpointFailedError("the helper died", "died", "relaunch", held=True)
FULL = CheckpointRefusedError("the GPU has 1 MiB free", "device_memory", "relaunch")


def view_of(stage: Stage, name: str) -> KernelView:
    return next(k for k in build_view(stage.loop).kernels if k.kernel_id == name)


async def suspended(
    stage: Stage, driver: Driver, name: str = "idle", used: int = 400 * MIB, **more: Any
) -> Any:
    """Start a kernel and have the driver take it."""
    port = await stage.kernel(name, used, **more)
    driver.sizes[name] = used + 50 * MIB
    await stage.loop.reclaim(name, "test")
    assert port.record.checkpointed
    return port


def test_the_cheapest_rung_is_taken_and_the_reason_says_why(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        idle, asks = await stage.kernel("idle", 400 * MIB), await stage.kernel("asks")
        driver.sizes["idle"] = 450 * MIB
        assert view_of(stage, "idle").suspend_by is Rung.DRIVER_CHECKPOINT
        stage.claim("asks", 300 * MIB)
        await stage.until(lambda: "claim-asks" in asks.granted())
        # It knew that it has nothing before the driver took it, and was not asked for anything.
        assert [said[:2] for said in idle.said] == [("bind", 0)]
        assert (stage.lease("idle").state, stage.lease("idle").held_bytes) == (
            LeaseState.SUSPENDED,
            0,
        )
        record = idle.record
        assert record is not None
        assert (record.used_bytes, record.suspended_bytes) == (0, 450 * MIB)
        assert "driver checkpoint, 0.00 s predicted" in record.decisions[-1].reason
        view = view_of(stage, "idle")
        assert (view.checkpointed, view.suspend_by, view.savable) == (True, None, False)
        speeds = stage.loop.speeds.now
        assert {"checkpoint", "helper"} <= set(speeds.measured)

    play(story)


def test_without_proof_memory_is_taken_in_place_and_the_reason_names_the_proof(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.proven.clear()
        idle = await stage.kernel("idle", 400 * MIB)
        view = view_of(stage, "idle")
        assert view.suspend_by is Rung.IN_PLACE
        assert "driver checkpoint: between cells is not proven" in view.suspend_why
        assert view.why_not_preempt == "mid-cell is not proven"
        await stage.loop.reclaim("idle", "test")
        assert idle.said[-1][0] == "reclaim"
        assert driver.said == []

    play(story)


def test_a_waiting_cell_is_granted_only_when_the_driver_has_brought_its_kernel_back(
    play: Any,
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver, used=200 * MIB)
        other = await stage.kernel("other")
        driver.gate = asyncio.Event()
        stage.claim("idle", 250 * MIB)
        await stage.until(lambda: ("resume", "idle", {}) in driver.said)
        # Meanwhile others are served, and its repeated claim changes nothing.
        stage.claim("idle", 250 * MIB)
        stage.claim("other", 10 * MIB)
        await stage.until(lambda: "claim-other" in other.granted())
        assert port.granted() == []
        driver.gate.set()
        await stage.until(lambda: port.record.working is None)
        assert port.granted() == ["claim-idle"]
        assert not stage.loop.claims
        assert (port.record.used_bytes, port.record.suspended_bytes) == (200 * MIB, 0)
        assert stage.lease("idle").state is LeaseState.BOUND
        assert "restored" in stage.kinds()

    play(story)


def test_what_the_driver_refuses_is_taken_in_place_and_the_reason_says_so(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.fails["suspend"] = REFUSED
        idle = await stage.kernel("idle", 400 * MIB)
        assert await stage.loop.reclaim("idle", "test") == 400 * MIB
        assert [said[0] for said in idle.said] == ["bind", "bind", "reclaim"]
        # It had its lease again in between.
        assert idle.said[1][1] == 400 * MIB
        assert idle.record is not None
        assert not idle.record.checkpointed
        assert "in place, because: the GPU is cut into MIG" in idle.record.decisions[-1].reason
        event = next(data for kind, data in stage.events if kind == "reclaimed")
        assert event["rung"] == "in_place"

    play(story)


def test_a_kernel_without_agent_that_the_driver_refuses_keeps_all_it_has(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.fails["suspend"] = REFUSED
        port = await stage.kernel("r", 400 * MIB, agent=False)
        with pytest.raises(PlanOvertaken, match="MIG"):
            await stage.loop.reclaim("r", "test")
        assert (port.said, stage.lease("r").state) == ([], LeaseState.BOUND)
        driver.proven.clear()
        assert view_of(stage, "r").suspend_by is None
        with pytest.raises(RefusedError, match="it has no agent"):
            await stage.loop.reclaim("r", "test")

    play(story)


def test_what_cannot_be_written_down_is_not_begun_and_the_kernel_has_its_lease(
    play: Any,
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.fails["suspend"] = StoreError("the disk is full")
        port = await stage.kernel("idle", 400 * MIB)
        with pytest.raises(PlanOvertaken, match="disk is full"):
            await stage.loop.reclaim("idle", "test")
        assert stage.lease("idle").held_bytes == 400 * MIB
        assert [said[1] for said in port.said] == [0, 400 * MIB]
        assert not view_of(stage, "idle").checkpointed

    play(story)


def test_one_that_the_driver_may_hold_half_way_is_brought_back_by_its_next_claim(
    play: Any,
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.fails["suspend"] = HELD
        idle = await stage.kernel("idle", 400 * MIB)
        with pytest.raises(PlanOvertaken, match="helper died"):
            await stage.loop.reclaim("idle", "test")
        # Its memory may still be there, so it is not given to anybody.
        assert stage.lease("idle").held_bytes == 400 * MIB
        assert view_of(stage, "idle").checkpointed
        stage.claim("idle", 400 * MIB)
        await stage.until(lambda: idle.granted() == ["claim-idle"])
        assert idle.record is not None
        assert not idle.record.checkpointed
        assert idle.record.used_bytes == 400 * MIB

    play(story)


def test_a_kernel_without_agent_comes_back_when_it_is_at_work(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver, "r", agent=False)
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
        assert view_of(stage, "long").attained_s == 100
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
        view = view_of(stage, "long")
        assert (view.attained_s, view.switched_s) == (100, record.preempted_s)
        stage.loop.cell_over(other.record)
        other.record.used_bytes = 0
        stage.now += 50
        await stage.until(lambda: not record.checkpointed and record.working is None)
        assert record.preempted_s is None
        assert record.switched_s == stage.now
        assert port.granted() == []
        stage.now += 7
        assert view_of(stage, "long").attained_s == 107

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
        port = await suspended(stage, driver)
        port.record.shell_busy_s = stage.now
        await stage.turn()
        assert port.record.checkpointed
        stage.now += UNASKED_S
        await stage.until(lambda: not port.record.checkpointed)
        assert ("resume", "idle", {}) in driver.said

    play(story)


@pytest.mark.parametrize("error", [FULL, HELD], ids=["full", "failed"])
def test_a_resume_that_fails_leaves_the_kernel_suspended_and_whole(
    play: Any, error: Exception
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver)
        driver.fails["resume"] = error
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.said and port.said[-1][0] in ("queue", "refuse"))
        # What may pass is waited for, with the reason in the cell; what failed is said.
        assert port.said[-1][0] == ("queue" if error is FULL else "refuse")
        assert str(error) in port.said[-1]
        await stage.until(lambda: port.record.working is None)
        assert stage.lease("idle").state is LeaseState.SUSPENDED
        assert (port.record.checkpointed, port.record.suspended_bytes) == (True, 450 * MIB)
        tried = len(driver.said)
        stage.claim("idle", 450 * MIB)
        await stage.turn()
        assert len(driver.said) == tried
        driver.fails.clear()
        stage.now += 3
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.granted() == ["claim-idle"])
        assert port.record.used_bytes == 400 * MIB

    play(story)


def test_a_halted_cell_is_tried_again_ever_more_rarely(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver, "r", agent=False)
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


def test_a_kernel_that_ends_while_it_comes_back_leaves_nothing(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver)
        driver.gate = asyncio.Event()
        driver.fails["resume"] = CheckpointFailedError("gone", "gone", held=False)
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: ("resume", "idle", {}) in driver.said)
        await stage.loop.kernel_ended("idle", "killed")
        driver.gate.set()
        await stage.until(lambda: port.record.working is None)
        assert stage.loop.leases.get("idle") is None
        assert ("forget", "idle") in driver.said

    play(story)


def test_a_kernel_goes_to_another_gpu_by_the_drivers_map(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("k", 100 * MIB)
        driver.sizes["k"] = 150 * MIB
        record = port.record
        assert record is not None
        assert choose_move(stage.loop, record, "SIM-GPU-1").rung is Rung.DRIVER_CHECKPOINT
        paused_s = await stage.loop.switching.move(record, "SIM-GPU-1", 200 * MIB)
        assert paused_s == pytest.approx(1.25)
        assert ("resume", "k", {GPU: "SIM-GPU-1"}) in driver.said
        lease = stage.lease("k")
        assert (lease.gpu_uuid, lease.state, lease.bytes) == (
            "SIM-GPU-1",
            LeaseState.BOUND,
            200 * MIB,
        )
        assert [said[1] for said in port.said] == [0, 200 * MIB]

    play(story, gpus=2)


def test_a_move_that_fails_brings_the_kernel_back_where_it_was(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.kernel("k", 100 * MIB)
        driver.sizes["k"] = 150 * MIB
        driver.fails["move"] = CheckpointFailedError("invalid argument", held=True)
        record = port.record
        assert record is not None
        with pytest.raises(ConflictError, match="stays where it is: invalid argument"):
            await stage.loop.switching.move(record, "SIM-GPU-1", 100 * MIB)
        lease = stage.lease("k")
        assert (lease.gpu_uuid, lease.state, lease.bytes) == (GPU, LeaseState.BOUND, 100 * MIB)
        assert (record.checkpointed, port.said[-1][1]) == (False, 100 * MIB)
        # With the way back closed too it stays with the driver, whole, until it is needed.
        driver.fails["resume"] = driver.fails["move"]
        with pytest.raises(ConflictError):
            await stage.loop.switching.move(record, "SIM-GPU-1", 100 * MIB)
        assert (stage.lease("k").gpu_uuid, stage.lease("k").state) == (GPU, LeaseState.SUSPENDED)
        assert record.checkpointed
        driver.fails.clear()
        stage.now += 10
        stage.claim("k", 150 * MIB)
        await stage.until(lambda: port.granted() == ["claim-k"])

    play(story, gpus=2)


def test_what_the_driver_has_moves_when_it_comes_back(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await suspended(stage, driver)
        calls = len(driver.said)
        assert await stage.loop.switching.move(port.record, "SIM-GPU-1", 0) == 0.0
        assert len(driver.said) == calls
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.granted() == ["claim-idle"])
        assert driver.said[-1] == ("resume", "idle", {GPU: "SIM-GPU-1"})
        assert stage.lease("idle").gpu_uuid == "SIM-GPU-1"

    play(story, gpus=2)


def test_the_driver_moves_nothing_that_runs_or_goes_to_another_kind(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.driver()
        port = await stage.kernel("k", 100 * MIB)
        record = port.record
        assert record is not None
        stage.loop.cell_started(record, None)
        assert choose_move(stage.loop, record, "SIM-GPU-1").rung is Rung.RELAUNCH
        stage.loop.cell_over(record)
        one, two = stage.loop.statuses
        stage.loop.statuses = one, replace(two, name="another kind")
        choice = choose_move(stage.loop, record, "SIM-GPU-1")
        assert choice.rung is Rung.RELAUNCH
        assert "is of another kind" in choice.reason

    play(story, gpus=2)


def test_what_an_earlier_server_left_with_the_driver_is_taken_over(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = Driver(GPU)
        driver.out = {name: {GPU: 150 * MIB} for name in ("whole", "booked late", "half")}
        driver.unsettled = {"half"}
        stage.loop.checkpoints = driver
        for name in driver.out:
            await stage.kernel(name, 100 * MIB)
        epoch = await stage.loop.leases.next_epoch_for_suspend("whole")
        await stage.loop.leases.suspend("whole", epoch, 0)
        await stage.loop.halted.recover()
        for name in ("whole", "booked late"):
            view = view_of(stage, name)
            # What the driver may want besides is asked for with it.
            wanted = 150 * MIB + RESUME_MARGIN_BYTES
            assert (view.checkpointed, view.suspended_bytes) == (True, wanted)
            assert stage.lease(name).state is LeaseState.SUSPENDED
        view = view_of(stage, "half")
        assert (view.checkpointed, view.suspended_bytes, view.used_bytes) == (False, 0, 150 * MIB)
        assert stage.lease("half").state is LeaseState.BOUND

    play(story)


def test_a_cell_that_an_earlier_server_halted_goes_on(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = Driver(GPU)
        driver.out, driver.halted = {"r": {GPU: 150 * MIB}}, {"r"}
        stage.loop.checkpoints = driver
        port = await stage.kernel("r", 0, agent=False)
        record = port.record
        assert record is not None
        assert record.preempted_s is not None
        await stage.loop.halted.recover()
        # Nobody has said since that it is at work, and it cannot.
        await stage.until(lambda: not record.checkpointed and record.working is None)
        assert record.used_bytes == 150 * MIB

    play(story)


def test_speeds_are_learned_and_known_to_the_next_loop(play: Any, tmp_path: Any) -> None:
    async def first(stage: Stage) -> None:
        stage.loop.speeds.learned(Transfer.CHECKPOINT, 4 * GIB, 2.0)
        stage.loop.speeds.learned(Transfer.HELPER, 0, 0.75)
        stage.loop.speeds.learned(Transfer.RESUME, 0, 1.0)

    async def second(stage: Stage) -> None:
        assert stage.loop.speeds.now == Bandwidths()
        await stage.loop.start()
        known = stage.loop.speeds.now
        assert (known.checkpoint_bytes_per_s, known.helper_s) == (2 * GIB, 0.75)
        assert known.measured == ("checkpoint", "helper")
        json.dumps(known.to_json(), allow_nan=False)

    play(first)
    play(second)


def test_a_burst_is_what_its_cells_have_run() -> None:
    burst = Burst()
    burst.cell_started(1000.0)
    assert burst.attained_s(1010.0) == 10.0
    burst.cell_ended(1000.0, 1010.0)
    assert burst.attained_s(1010.0 + GAP_S - 1) == 10.0
    assert burst.attained_s(1010.0 + GAP_S) == 0.0
    # A short cell is told of only when it is over.
    burst.cell_ended(1020.0, 1022.0)
    assert burst.attained_s(1022.0) == 12.0
    burst.cell_started(1030.0)
    burst.halt(1040.0)
    assert burst.attained_s(5000.0) == 22.0
    burst.go_on(5000.0)
    assert burst.attained_s(5003.0) == 25.0
    burst.cell_ended(1030.0, 5004.0)
    assert burst.attained_s(5004.0) == 26.0
    burst.cell_started(5004.0 + GAP_S)
    assert burst.attained_s(5005.0 + GAP_S) == 1.0
