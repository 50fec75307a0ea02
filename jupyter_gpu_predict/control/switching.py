"""Taking kernels off their GPUs and bringing them back, by whichever rung."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.migration.cost import Transfer
from ..core.model import Lease, LeaseState, Rung
from ..errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
    ConflictError,
    GpuPredictError,
    RefusedError,
)
from .ports import Checkpoints, Resumed, Suspended
from .records import KernelRecord
from .rungs import choose_suspension

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)


class PlanOvertaken(Exception):  # noqa: N818 - not a fault: the world moved on
    """An action did not succeed, so that what follows in the plan no longer holds."""


class Switching:
    """Suspends and resumes kernels; only what succeeded is booked."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop

    # ------------------------------------------------------------------ out

    async def suspend(
        self,
        kernel_id: str,
        reason: str,
        for_kernel_id: str | None = None,
        *,
        rung: Rung = Rung.IN_PLACE,
        mid_cell: bool = False,
        wait: bool = False,
    ) -> int:
        """Suspend a kernel and return the bytes that became free.

        Where the driver refuses, its memory is taken back in place if that can be.

        Raises
        ------
        PlanOvertaken
            If it was not suspended; what is booked is what is.
        """
        loop = self.loop
        record = loop.kernels.get(kernel_id)
        lease = loop.leases.get(kernel_id)
        if record is None or lease is None or record.working is not None:
            raise PlanOvertaken("the kernel is gone or at work")
        if lease.state is LeaseState.SUSPENDED or record.checkpointed:
            raise PlanOvertaken("its memory was taken back already")
        record.working = "reclaim"
        try:
            epoch = await loop.leases.next_epoch_for_suspend(kernel_id)
            told: dict[str, Any]
            if rung is Rung.IN_PLACE:
                told = await self._in_place(record, epoch, wait=wait)
            else:
                try:
                    told = await self._by_driver(record, lease, epoch, mid_cell=mid_cell)
                except CheckpointRefusedError as error:
                    if mid_cell or not record.port.has_agent or record.keeps(loop.clock()):
                        raise PlanOvertaken(str(error)) from error
                    reason = f"{reason}; in place, because: {error}"
                    rung = Rung.IN_PLACE
                    epoch = await loop.leases.next_epoch_for_suspend(kernel_id)
                    told = await self._in_place(record, epoch, wait=wait)
        finally:
            record.working = None
        self._check_there(record)
        record.measured_s = loop.clock()
        record.prebound = None
        await loop.leases.suspend(kernel_id, epoch, record.used_bytes)
        # By the last reading what came free is still in use, by nobody who has a lease on it.
        await loop.facts.read_devices()
        record.decided(loop.clock(), "reclaim", reason)
        loop.event(
            "reclaimed",
            kernel_id=kernel_id,
            notebook=record.notebook,
            gpu_uuid=lease.gpu_uuid,
            resident_bytes=record.used_bytes,
            kept=[list(kept) for kept in record.kept],
            for_kernel_id=for_kernel_id,
            rung=rung.value,
            mid_cell=record.preempted_s is not None,
            reason=reason,
            **told,
        )
        return int(told["bytes"])

    async def reclaim(self, kernel_id: str, reason: str, *, wait: bool) -> int:
        """Suspend a kernel by its cheapest rung and return the bytes that became free.

        Raises
        ------
        RefusedError
            If there is no way to suspend it now.
        PlanOvertaken
            If it was not suspended.
        """
        record, rung = self.loop.kernel(kernel_id), Rung.IN_PLACE
        try:
            choice = choose_suspension(self.loop, record)
        except RefusedError:
            if not record.port.has_agent:
                raise
            # What it said a moment ago may have passed: it is asked again.
        else:
            # Only an agent can wait for the end of a cell.
            rung = rung if wait and record.port.has_agent else choice.rung
            reason = f"{reason} ({choice.reason})"
        return await self.suspend(kernel_id, reason, rung=rung, wait=wait)

    async def _in_place(self, record: KernelRecord, epoch: int, *, wait: bool) -> dict[str, Any]:
        try:
            answer = await record.port.reclaim(epoch, wait=wait)
        except GpuPredictError as error:
            record.keep(str(error), self.loop.clock())
            await self._renew(record, epoch)
            raise PlanOvertaken(str(error)) from error
        freed = int(answer["freed_bytes"])
        record.used_bytes = int(answer["resident_bytes"])
        record.suspended_bytes = int(answer["suspended_bytes"])
        record.kept = [(str(why), int(size)) for why, size in answer.get("kept", ())]
        self.loop.speeds.learned(Transfer.SUSPEND, freed, float(answer["seconds"]))
        return {"bytes": freed, "seconds": float(answer["seconds"])}

    async def _by_driver(
        self, record: KernelRecord, lease: Lease, epoch: int, *, mid_cell: bool
    ) -> dict[str, Any]:
        if mid_cell and not record.busy:
            mid_cell = False
        elif record.busy and not mid_cell:
            raise PlanOvertaken("it runs a cell")
        done = await self._take(record, lease, epoch, mid_cell=mid_cell)
        if mid_cell:
            now = self.loop.clock()
            record.preempted_s = record.switched_s = now
            record.burst.halt(now)
        return {"bytes": done.bytes, "seconds": done.seconds}

    async def _take(
        self,
        record: KernelRecord,
        lease: Lease,
        epoch: int,
        *,
        mid_cell: bool,
        to_other_gpu: bool = False,
    ) -> Suspended:
        """Have the driver take a kernel, which then knows that it has to claim before a cell.

        Raises
        ------
        CheckpointRefusedError
            If the driver did not; the kernel has what it had.
        PlanOvertaken
            If the kernel did not listen, or the driver may hold it half way.
        """
        loop, root = self.loop, record.port.pid
        if root is None or not await record.port.alive():
            raise PlanOvertaken("the kernel has no process")
        if not mid_cell:
            # Told first: once the driver has it, a call of the agent's to CUDA would not return.
            try:
                now = replace(lease, bytes=0, epoch=epoch)
                await tell_lease(record, now, checkpointed=True)
            except GpuPredictError as error:
                record.keep(str(error), loop.clock())
                kept = await self._renew(record, epoch)
                if kept is not None and not isinstance(error, RefusedError):
                    # It may hear that yet, and hears this after it.
                    loop.reconciler.spawn(self.tell_again(record, kept))
                raise PlanOvertaken(str(error)) from error
        await loop.caps.park(record, lease.gpu_uuid)
        if not mid_cell and _may_run(record):
            record.keep("it runs a cell", loop.clock())
            raise PlanOvertaken("it runs a cell")
        try:
            done = await self._driver.suspend(
                record.kernel_id, root, mid_cell=mid_cell, to_other_gpu=to_other_gpu
            )
        except CheckpointFailedError as error:
            if error.held:
                # Its memory may still be there: the lease stays, and the next claim resumes it.
                record.held_by_driver(0, record.used_bytes, loop.clock())
                if mid_cell:
                    record.preempted_s = loop.clock()
                    record.burst.halt(record.preempted_s)
                await self._renew(record, epoch)
            else:
                await self._as_before(record, epoch)
            loop.event("checkpoint_failed", kernel_id=record.kernel_id, reason=str(error))
            raise PlanOvertaken(str(error)) from error
        except CheckpointRefusedError:
            await self._as_before(record, epoch)
            raise
        except GpuPredictError as error:
            # Nothing was touched: e.g. its record could not be written down.
            await self._as_before(record, epoch)
            raise PlanOvertaken(str(error)) from error
        self._check_there(record)
        record.held_by_driver(done.bytes, done.left_bytes, loop.clock())
        record.kept = []
        loop.speeds.learned(Transfer.CHECKPOINT, done.bytes, done.seconds)
        loop.speeds.learned(Transfer.HELPER, 0, done.overhead_s)
        return done

    def _check_there(self, record: KernelRecord) -> None:
        loop, kernel_id = self.loop, record.kernel_id
        if loop.kernels.get(kernel_id) is not record or loop.leases.get(kernel_id) is None:
            raise PlanOvertaken("the kernel ended meanwhile")

    async def _renew(self, record: KernelRecord, epoch: int) -> Lease | None:
        """Book the epoch that a kernel may have heard: what is older is refused there as stale."""
        if self.loop.kernels.get(record.kernel_id) is not record:
            return None
        return await self.loop.leases.renew(record.kernel_id, epoch)

    async def _as_before(self, record: KernelRecord, epoch: int) -> None:
        """Tell a kernel the lease that it keeps after all, under the epoch it may have heard."""
        kept = await self._renew(record, epoch)
        if kept is not None:
            await self.tell_again(record, kept)

    async def tell_again(
        self, record: KernelRecord, lease: Lease, *, checkpointed: bool = False
    ) -> None:
        """Tell a kernel its lease; one that does not listen goes on with what it knows."""
        try:
            await tell_lease(record, lease, checkpointed=checkpointed)
        except GpuPredictError as error:
            log.warning("Kernel %s did not hear of its lease: %s", record.kernel_id, error)

    @property
    def _driver(self) -> Checkpoints:
        if self.loop.checkpoints is None:
            raise ConflictError("driver checkpoints are off (GpuPredict.checkpoint)")
        return self.loop.checkpoints

    # ------------------------------------------------------------------ back

    async def resume(self, record: KernelRecord, lease: Lease) -> tuple[Resumed, Lease]:
        """Have the driver bring a kernel back on the GPU of its lease.

        Where a move was booked that the driver does not make, it comes back where it was, and the
        lease, which is returned, with it.

        Raises
        ------
        GpuPredictError
            If it did not come back; it is left alone for a while then.
        """
        loop = self.loop
        homes = self._driver.gpus(record.kernel_id)
        # Which of several GPUs the lease is about is not known: they stay as they were.
        home = next(iter(homes)) if len(homes) == 1 else lease.gpu_uuid
        try:
            if home == lease.gpu_uuid:
                done = await self._driver.resume(record.kernel_id)
            else:
                done, lease = await self._resume_away(record, lease, home)
        except GpuPredictError as error:
            record.resume_failed(loop.clock())
            loop.event("checkpoint_failed", kernel_id=record.kernel_id, reason=str(error))
            raise
        self.is_back(record, done)
        loop.event(
            "restored",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            gpu_uuid=lease.gpu_uuid,
            bytes=done.bytes,
            seconds=done.seconds,
            rung=Rung.DRIVER_CHECKPOINT.value,
        )
        return done, lease

    async def _resume_away(
        self, record: KernelRecord, lease: Lease, home: str
    ) -> tuple[Resumed, Lease]:
        """Bring a kernel back on another GPU than it had, or else on the one it had."""
        try:
            gpu_map = {home: lease.gpu_uuid}
            return await self._driver.resume(record.kernel_id, gpu_map=gpu_map), lease
        except (CheckpointRefusedError, CheckpointFailedError) as error:
            there = [s for s in self.loop.statuses if s.uuid == home and not s.lost]
            room = bool(there) and lease.bytes <= self.loop.free_bytes(home)
            # Where the other GPU is full the move may still come; else it never will.
            if not there or (error.why == "device_memory" and not room):
                raise
            if self.loop.kernels.get(record.kernel_id) is not record:
                raise
            rebooked = await self.loop.leases.rebook(lease, home)
            if rebooked is None or not room:
                raise
            log.warning("Kernel %s comes back where it was: %s", record.kernel_id, error)
        return await self._driver.resume(record.kernel_id), rebooked

    def is_back(self, record: KernelRecord, done: Resumed) -> None:
        """Note that the driver has brought a kernel back."""
        loop = self.loop
        record.given_back(done.bytes)
        if record.preempted_s is not None:
            record.preempted_s, record.switched_s = None, loop.clock()
            record.burst.go_on(record.switched_s)
        loop.speeds.learned(Transfer.RESUME, done.bytes, done.seconds)
        loop.speeds.learned(Transfer.HELPER, 0, done.overhead_s)

    # ------------------------------------------------------------------ to another GPU

    async def move(self, record: KernelRecord, target_uuid: str, wanted_bytes: int) -> float:
        """Bring a kernel that runs no cell to another GPU; return the seconds it stood still.

        What the driver has already is only booked there: it comes back on that GPU when needed.

        Raises
        ------
        GpuPredictError
            If it did not move; it is where it was, or with the driver, which the record says.
        """
        loop = self.loop
        lease = loop.leases.get(record.kernel_id)
        if lease is None:
            raise ConflictError(f"kernel {record.kernel_id} is on no GPU")
        epoch = await loop.leases.next_epoch_for_suspend(record.kernel_id)
        await loop.leases.begin_move(record.kernel_id)
        if record.checkpointed and lease.state is LeaseState.SUSPENDED:
            await loop.leases.end_move(record.kernel_id, target_uuid)
            return 0.0
        out: Suspended | None = None
        try:
            out = await self._take(record, lease, epoch, mid_cell=False, to_other_gpu=True)
            done = await self._driver.resume(
                record.kernel_id, gpu_map={lease.gpu_uuid: target_uuid}
            )
        except (GpuPredictError, PlanOvertaken) as error:
            await loop.leases.end_move(record.kernel_id, None)
            if out is not None:
                await self._stay(record, epoch)
            raise ConflictError(f"kernel {record.kernel_id} stays where it is: {error}") from error
        self.is_back(record, done)
        moved = await loop.leases.end_move(
            record.kernel_id, target_uuid, max(wanted_bytes, record.used_bytes)
        )
        if moved is not None:
            await self.tell_again(record, moved)
        record.gpu_uuid = target_uuid
        return out.seconds + out.overhead_s + done.seconds + done.overhead_s

    async def _stay(self, record: KernelRecord, epoch: int) -> None:
        """Bring a kernel that could not come back elsewhere back where it was."""
        try:
            self.is_back(record, await self._driver.resume(record.kernel_id))
        except GpuPredictError as error:
            log.warning("Kernel %s stays with the driver: %s", record.kernel_id, error)
            record.resume_failed(self.loop.clock())
            if self.loop.leases.get(record.kernel_id) is not None:
                await self.loop.leases.suspend(record.kernel_id, epoch, record.used_bytes)
            return
        await self._as_before(record, epoch)


def _may_run(record: KernelRecord) -> bool:
    """Whether a kernel that cannot be asked may be running a cell, by what Jupyter sees."""
    return not record.port.has_agent and record.shell_busy_s is not None


async def tell_lease(
    record: KernelRecord, lease: Lease, cap_bytes: int | None = None, **more: Any
) -> dict[str, Any]:
    """Tell a kernel its lease, if it has an agent that listens."""
    if not record.port.has_agent:
        return {}
    given = {"claim_id": None, "restore": False, "peaks": {}, **more}
    return await record.port.bind(lease, cap_bytes=cap_bytes, **given)
