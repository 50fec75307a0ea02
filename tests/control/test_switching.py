"""Rung 2 in the loop: the driver takes kernels and brings them back; the driver is a fake."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from loop_stage import Stage

from jupyter_gpu_predict.control.switching import PlanOvertaken
from jupyter_gpu_predict.core.migration.cost import Bandwidths, Transfer
from jupyter_gpu_predict.core.model import GIB, MIB, LeaseState, Rung
from jupyter_gpu_predict.errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
    RefusedError,
    StoreError,
)

REFUSED = CheckpointRefusedError("the GPU is cut into MIG slices", "mig", "in_place")
HELD = CheckpointFailedError("the helper died", "died", "relaunch", held=True)
FULL = CheckpointRefusedError("the GPU has 1 MiB free", "device_memory", "relaunch")


def test_the_cheapest_rung_is_taken_and_the_reason_says_why(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        idle, asks = await stage.kernel("idle", 400 * MIB), await stage.kernel("asks")
        driver.sizes["idle"] = 450 * MIB
        assert stage.view("idle").suspend_by is Rung.DRIVER_CHECKPOINT
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
        view = stage.view("idle")
        assert (view.checkpointed, view.suspend_by, view.savable) == (True, None, False)
        speeds = stage.loop.speeds.now
        assert {"checkpoint", "helper"} <= set(speeds.measured)

    play(story)


def test_without_proof_memory_is_taken_in_place_and_the_reason_names_the_proof(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        driver.proven.clear()
        idle = await stage.kernel("idle", 400 * MIB)
        view = stage.view("idle")
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
        port = await stage.suspended(used=200 * MIB)
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
        assert stage.view("r").suspend_by is None
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
        assert not stage.view("idle").checkpointed

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
        assert stage.view("idle").checkpointed
        stage.claim("idle", 400 * MIB)
        await stage.until(lambda: idle.granted() == ["claim-idle"])
        assert idle.record is not None
        assert not idle.record.checkpointed
        assert idle.record.used_bytes == 400 * MIB

    play(story)


@pytest.mark.parametrize("error", [FULL, HELD], ids=["full", "failed"])
def test_a_resume_that_fails_leaves_the_kernel_suspended_and_whole(
    play: Any, error: Exception
) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
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


def test_a_kernel_that_ends_while_it_comes_back_leaves_nothing(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
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
