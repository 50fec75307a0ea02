"""What an earlier server left with the driver; the driver is a fake."""

from __future__ import annotations

import asyncio
from typing import Any

from loop_stage import GPU, Driver, Stage

from jupyter_gpu_predict.control.ports import RESUME_MARGIN_BYTES
from jupyter_gpu_predict.core.model import MIB, LeaseState


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
            view = stage.view(name)
            # What the driver may want besides is asked for with it.
            wanted = 150 * MIB + RESUME_MARGIN_BYTES
            assert (view.checkpointed, view.suspended_bytes) == (True, wanted)
            assert stage.lease(name).state is LeaseState.SUSPENDED
        view = stage.view("half")
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


def test_the_loop_leaves_alone_what_is_being_recovered(play: Any) -> None:
    async def story(stage: Stage) -> None:
        driver = Driver(GPU)
        driver.out, driver.halted = {"r": {GPU: 150 * MIB}}, {"r"}
        stage.loop.checkpoints = driver
        port = await stage.kernel("r", 0, agent=False)
        record = port.record
        assert record is not None
        goes_on, recover = asyncio.Event(), driver.recover

        async def slow(kernel_ids: Any) -> None:
            await goes_on.wait()
            await recover(kernel_ids)

        driver.recover = slow  # type: ignore[method-assign]
        recovering = asyncio.ensure_future(stage.loop.halted.recover())
        for _ in range(3):
            await stage.turn()
        assert driver.said == []
        goes_on.set()
        await recovering
        await stage.until(lambda: not record.checkpointed and record.working is None)
        assert stage.lease("r").state is LeaseState.BOUND

    play(story)


def test_a_kernel_that_came_back_elsewhere_before_a_crash_is_booked_there(play: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.loop.checkpoints = Driver(GPU)
        port = await stage.kernel("k", 100 * MIB)
        read = stage.loop.facts._read

        def on_the_other(records: Any) -> Any:
            statuses, _ = read(records)
            return statuses, [({"SIM-GPU-1": 150 * MIB}, 1) for _ in records]

        stage.loop.facts._read = on_the_other  # type: ignore[method-assign]
        await stage.loop.halted.recover()
        assert stage.lease("k").gpu_uuid == "SIM-GPU-1"
        assert port.said[-1][:2] == ("bind", 100 * MIB)

    play(story, gpus=2)
