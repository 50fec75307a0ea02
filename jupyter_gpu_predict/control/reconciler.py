"""Carry a plan out, action by action, and book what really happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.model import Claim, Lease, LeaseState, Rung
from ..core.plans import (
    Action,
    Bind,
    Cordon,
    Migrate,
    Plan,
    Prebind,
    Queue,
    Reclaim,
    Refuse,
    Release,
    Resize,
    TakeSnapshot,
)
from ..errors import ConflictError, GpuPredictError
from .halted import waits_at_gate
from .long_work import LongWork
from .records import KernelRecord
from .switching import PlanOvertaken, tell_lease
from .tidings import Tidings

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)


class PlanWaitsError(Exception):
    """What follows in the plan rests on something that goes on in the background."""


class Reconciler:
    """Turns actions into requests to kernels; only what succeeded is booked."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self._background: set[asyncio.Task[None]] = set()
        self._long_work = LongWork(loop)
        self._tidings = Tidings(loop)
        self._freeing_for: set[str] = set()

    async def carry_out(self, plan: Plan) -> None:
        """Carry out `plan` in order; stop where it no longer holds and ask for another."""
        try:
            for action in plan.actions:
                await self._do(action)
        except PlanOvertaken as why:
            log.debug("The rest of the plan was dropped: %s", why)
            self.loop.wake()
        except PlanWaitsError as why:
            # Its end wakes the loop; until then the others' turns go on.
            log.debug("The rest of the plan waits: %s", why)

    async def close(self) -> None:
        """Cancel what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _do(self, action: Action) -> None:
        match action:
            case Bind():
                await self._bind(action)
            case Prebind():
                await self._prebind(action)
            case Resize():
                await self._resize(action)
            case Reclaim():
                await self._reclaim(action)
            case Release():
                await self._release(action)
            case Queue():
                await self._tidings.queue(action)
            case Refuse():
                await self._tidings.refuse(action)
            case Cordon():
                self.loop.cordon(action.gpu_uuid, action.reason)
            case TakeSnapshot():
                self._long_work.take_snapshot(action)
            case Migrate():
                self._long_work.migrate(action)

    # ------------------------------------------------------------------ grants

    async def _bind(self, action: Bind) -> None:
        loop = self.loop
        claim = loop.claims.get(action.claim_id)
        record = loop.kernels.get(action.kernel_id)
        if claim is None or record is None or record.working is not None:
            raise PlanOvertaken("the claim is gone, or its kernel at work")
        before = loop.leases.get(action.kernel_id)
        lease = await loop.leases.bind(action.kernel_id, action.gpu_uuid, action.bytes)
        if loop.kernels.get(action.kernel_id) is not record:
            await self._unbind(record, lease, None)
            raise PlanOvertaken("the kernel ended meanwhile")
        grant = self._grant(action, claim, record, lease, before)
        if waits_at_gate(record, claim) and not record.checkpointed:
            await grant
            return
        # Nobody's cell waits for it, but a cell that runs may hold its restore up for long; and
        # what the driver brings back takes seconds, in which other claims are to be served.
        record.working = "bind"
        del loop.claims[claim.claim_id]

        async def later() -> None:
            try:
                await grant
            except PlanOvertaken as why:
                loop.settle(claim.claim_id, ConflictError(f"claim {claim.claim_id}: {why}"))
            except BaseException:
                # Or whoever waits for the claim would wait for ever.
                failed = f"claim {claim.claim_id} was cut short; make it again"
                loop.settle(claim.claim_id, ConflictError(failed))
                raise
            finally:
                record.working = None
                loop.wake()

        self.spawn(later())

    async def _grant(
        self,
        action: Bind,
        claim: Claim,
        record: KernelRecord,
        lease: Lease,
        before: Lease | None,
    ) -> None:
        """Bring the kernel back if the driver has it, tell it its grant and book it.

        Raises
        ------
        PlanOvertaken
            If that failed; the lease is what it was.
        """
        loop = self.loop
        cell = waits_at_gate(record, claim)
        waits = any(
            c.kernel_id == record.kernel_id and c.origin == "cell" for c in loop.claims.values()
        )
        halted = record.preempted_s is not None
        cap = await loop.caps.make_room(record, lease.gpu_uuid)
        if record.checkpointed:
            try:
                _, back = await loop.switching.resume(record, lease)
            except GpuPredictError as error:
                await self._unbind(record, lease, before)
                await self._tidings.not_resumed(record, claim, error)
                raise PlanOvertaken(str(error)) from error
            if loop.kernels.get(record.kernel_id) is not record:
                raise PlanOvertaken("the kernel ended meanwhile")
            if back.gpu_uuid != lease.gpu_uuid:
                lease, cap = back, await loop.caps.make_room(record, back.gpu_uuid)
        try:
            await tell_lease(
                record,
                lease,
                cap,
                claim_id=claim.claim_id if cell else None,
                # A cell that waits brings the state back by itself, once its own claim is granted.
                restore=not cell and record.suspended_bytes > 0 and not waits and not halted,
                peaks=record.peaks,
            )
        except GpuPredictError as error:
            loop.claim_ended(claim.claim_id, str(error))
            if halted:
                log.warning("Kernel %s did not hear of its lease: %s", record.kernel_id, error)
            else:
                await self._unbind(record, lease, before)
                raise PlanOvertaken(str(error)) from error
        else:
            loop.caps.confirm(record.kernel_id, cap)
        if claim.origin == "cell":
            record.claim_priority = claim.priority
            if cell:
                record.granted_s = loop.clock()
        loop.claims.pop(claim.claim_id, None)
        loop.settle(claim.claim_id)
        record.decided(loop.clock(), "bind", action.reason)
        loop.event(
            "bound",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            gpu_uuid=lease.gpu_uuid,
            bytes=lease.bytes,
            claim_id=claim.claim_id,
            waited_s=loop.clock() - claim.made_s,
            origin=claim.origin,
            reason=action.reason,
        )

    async def _unbind(self, record: KernelRecord, granted: Lease, before: Lease | None) -> None:
        """Put a lease that nobody took back to what it was; one granted since then stays."""
        loop, kernel_id = self.loop, record.kernel_id

        def in_force() -> Lease | None:
            lease = loop.leases.get(kernel_id)
            return lease if lease is not None and lease.epoch == granted.epoch else None

        lease = in_force()
        if lease is None:
            return
        if kernel_id not in loop.kernels:
            await loop.leases.release(kernel_id)
        elif loop.kernels[kernel_id] is not record:
            return
        elif before is None:
            await loop.leases.release(kernel_id)
        elif before.state is LeaseState.SUSPENDED and record.suspended_bytes > 0:
            epoch = await loop.leases.next_epoch_for_suspend(kernel_id)
            if in_force() is not None:
                await loop.leases.suspend(kernel_id, epoch, record.used_bytes)
        else:
            # A cell that runs goes on counting on what was granted for it.
            least = before.held_bytes if record.busy else 0
            await loop.leases.resize(kernel_id, min(lease.bytes, max(least, record.used_bytes)))

    async def _prebind(self, action: Prebind) -> None:
        loop = self.loop
        record = self._idle(action.kernel_id)
        if record.suspended_bytes == 0:
            expires = loop.clock() + loop.settings.reservation_s
            lease = await loop.leases.reserve(
                record.kernel_id, action.gpu_uuid, action.bytes, expires
            )
            loop.prebound(record, action.gpu_uuid, action.bytes, 0, action.reason)
            if not loop.backend.simulated:
                self.spawn(self._warm_up(record, lease))
            return
        if record.checkpointed and loop.clock() < record.no_resume_before_s:
            return  # it has just failed to come back
        record.working, before = "prebind", loop.leases.get(record.kernel_id)
        try:
            lease = await loop.leases.bind(record.kernel_id, action.gpu_uuid, action.bytes)
        except BaseException:
            record.working = None
            raise

        async def restore() -> None:
            brought = 0
            try:
                cap = await loop.caps.make_room(record, lease.gpu_uuid)
                if record.checkpointed:
                    done, back = await loop.switching.resume(record, lease)
                    brought = done.bytes
                    if back.gpu_uuid != lease.gpu_uuid:
                        cap = await loop.caps.make_room(record, back.gpu_uuid)
                else:
                    back = lease
                answer = await tell_lease(
                    record,
                    back,
                    cap,
                    restore=record.suspended_bytes > 0,
                    peaks=record.peaks,
                )
            except GpuPredictError as error:
                log.warning("Pre-bind of kernel %s failed: %s", record.kernel_id, error)
                await self._unbind(record, lease, before)
                return
            finally:
                record.working = None
            if loop.kernels.get(record.kernel_id) is not record:
                return
            loop.caps.confirm(record.kernel_id, cap)
            restored = brought + int(answer.get("restored_bytes", 0))
            loop.prebound(record, back.gpu_uuid, action.bytes, restored, action.reason)

        self.spawn(restore())

    async def _warm_up(self, record: KernelRecord, lease: Lease) -> None:
        """Have a kernel start its GPU's context while nobody waits for it."""
        try:
            # What is set aside is not granted yet: its cells claim as before.
            await tell_lease(record, replace(lease, bytes=0), warm=True)
        except GpuPredictError as error:
            log.warning("Kernel %s was not warmed up: %s", record.kernel_id, error)

    async def _resize(self, action: Resize) -> None:
        loop = self.loop
        record = loop.kernels.get(action.kernel_id)
        if record is None or loop.leases.get(action.kernel_id) is None:
            raise PlanOvertaken("the kernel is gone")
        lease = await loop.leases.resize(action.kernel_id, action.bytes)
        record.decided(loop.clock(), "resize", action.reason)
        loop.event(
            "resized",
            kernel_id=record.kernel_id,
            gpu_uuid=lease.gpu_uuid,
            bytes=lease.bytes,
            reason=action.reason,
        )
        try:
            cap = await loop.caps.make_room(record, lease.gpu_uuid)
            await tell_lease(record, lease, cap)
        except GpuPredictError as error:
            raise PlanOvertaken(str(error)) from error
        loop.caps.confirm(record.kernel_id, cap)

    # ------------------------------------------------------------------ taking back

    async def _reclaim(self, action: Reclaim) -> None:
        if action.for_kernel_id in self._freeing_for:
            # What comes free for it is not booked yet, so the plan would take from others too.
            raise PlanWaitsError(f"memory comes free for kernel {action.for_kernel_id}")
        if action.rung is Rung.IN_PLACE:
            await self._suspend(action)
            return
        # The driver and its helper take seconds, for which the others' claims must not wait.
        if action.for_kernel_id is not None:
            self._freeing_for.add(action.for_kernel_id)

        async def suspend() -> None:
            try:
                await self._suspend(action)
            except PlanOvertaken as why:
                # The next turn comes soon enough: what failed once may fail at once again.
                log.debug("Kernel %s was not suspended: %s", action.kernel_id, why)
            else:
                self.loop.wake()
            finally:
                self._freeing_for.discard(action.for_kernel_id or "")

        self.spawn(suspend())
        raise PlanWaitsError(f"the driver takes kernel {action.kernel_id}")

    async def _suspend(self, action: Reclaim) -> None:
        await self.loop.switching.suspend(
            action.kernel_id,
            action.reason,
            action.for_kernel_id,
            rung=action.rung,
            mid_cell=action.mid_cell,
        )

    async def _release(self, action: Release) -> None:
        loop = self.loop
        record = loop.kernels.get(action.kernel_id)
        lease = await loop.leases.release(action.kernel_id)
        if record is not None and lease is not None:
            record.prebound = None
            await self._tell_released(record, lease)
            record.decided(loop.clock(), "release", action.reason)
            loop.event(
                "released",
                kernel_id=record.kernel_id,
                gpu_uuid=lease.gpu_uuid,
                bytes=lease.bytes,
                reason=action.reason,
            )

    async def _tell_released(self, record: KernelRecord, lease: Lease) -> None:
        """Let the kernel claim again before it uses memory that is no longer set aside."""
        try:
            await tell_lease(record, replace(lease, bytes=0))
        except GpuPredictError as error:
            log.warning("Kernel %s did not hear of its release: %s", record.kernel_id, error)

    # ------------------------------------------------------------------ helpers

    def _idle(self, kernel_id: str) -> KernelRecord:
        record = self.loop.kernels.get(kernel_id)
        if record is None or record.working is not None or record.busy:
            raise PlanOvertaken("the kernel is gone or at work")
        return record

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let something run in the background until `close`."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
