"""Kernels that go to another GPU by the driver's map; the driver is a fake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from loop_stage import GPU, Stage

from jupyter_gpu_predict.control.rungs import choose_move
from jupyter_gpu_predict.core.model import MIB, LeaseState, Rung
from jupyter_gpu_predict.errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
    ConflictError,
)


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
        port = await stage.suspended()
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


def test_a_booked_move_that_the_driver_does_not_make_ends_where_the_kernel_was(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        await stage.loop.switching.move(port.record, "SIM-GPU-1", 0)
        driver.fails["move"] = CheckpointRefusedError("moving it failed 2 times", "failed_before")
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.granted() == ["claim-idle"])
        assert driver.said[-2:] == [
            ("resume", "idle", {GPU: "SIM-GPU-1"}),
            ("resume", "idle", {}),
        ]
        assert (stage.lease("idle").gpu_uuid, stage.lease("idle").state) == (
            GPU,
            LeaseState.BOUND,
        )
        assert not port.record.checkpointed

    play(story, gpus=2)


def test_with_no_room_where_it_was_it_is_at_least_booked_there(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = stage.driver()
        port = await stage.suspended()
        await stage.loop.switching.move(port.record, "SIM-GPU-1", 0)
        other = await stage.kernel("other", 300 * MIB)
        assert other.record is not None
        driver.sizes["other"] = 300 * MIB
        other.record.pinned = True
        driver.fails["move"] = CheckpointFailedError("invalid argument", held=True)
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.record.failed_resumes == 1 and port.record.working is None)
        assert (stage.lease("idle").gpu_uuid, stage.lease("idle").state) == (
            GPU,
            LeaseState.SUSPENDED,
        )
        other.record.pinned = False
        stage.now += 10
        stage.claim("idle", 450 * MIB)
        await stage.until(lambda: port.granted() == ["claim-idle"])
        assert stage.lease("idle").gpu_uuid == GPU

    play(story, gpus=2)
