"""Carry a plan out, action by action, and book what really happened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..core.migration.cost import Transfer
from ..core.model import Claim, Lease, LeaseState
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
from ..errors import ConflictError, GpuPredictError, UnsatisfiableError
from .long_work import LongWork
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)


class PlanOvertaken(Exception):  # noqa: N818 - not a fault: the world moved on
    """An action did not succeed, so that what follows in the plan no longer holds."""


class Reconciler:
    """Turns actions into requests to kernels; only what succeeded is booked."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self._background: set[asyncio.Task[None]] = set()
        self._long_work = LongWork(loop)

    async def carry_out(self, plan: Plan) -> None:
        """Carry out `plan` in order; stop where it no longer holds and ask for another."""
        try:
            for action in plan.actions:
                await self._do(action)
        except PlanOvertaken as why:
            log.debug("The rest of the plan was dropped: %s", why)
            self.loop.wake()

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
                await self._queue(action)
            case Refuse():
                await self._refuse(action)
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
        if action.kernel_id not in loop.kernels:
            await loop.leases.release(action.kernel_id)
            raise PlanOvertaken("the kernel ended meanwhile")
        grant = self._grant(action, claim, record, lease, before.state if before else None)
        if claim.origin == "cell":
            await grant
            return
        # Nobody's cell waits for it, but a cell that runs may hold its restore up for long.
        record.working = "bind"
        del loop.claims[claim.claim_id]

        async def later() -> None:
            try:
                await grant
            except PlanOvertaken as why:
                loop.settle(claim.claim_id, ConflictError(f"claim {claim.claim_id}: {why}"))
            finally:
                record.working = None

        self._spawn(later())

    async def _grant(
        self,
        action: Bind,
        claim: Claim,
        record: KernelRecord,
        lease: Lease,
        before: LeaseState | None,
    ) -> None:
        """Tell the kernel its grant and book it, or put the lease back."""
        loop = self.loop
        cell = claim.origin == "cell"
        waits = any(
            c.kernel_id == record.kernel_id and c.origin == "cell" for c in loop.claims.values()
        )
        try:
            await record.port.bind(
                lease,
                cap_bytes=loop.cap_bytes(lease.gpu_uuid, record.kernel_id),
                claim_id=claim.claim_id if cell else None,
                # A cell that waits brings the state back by itself, once its own claim is granted.
                restore=not cell and record.suspended_bytes > 0 and not waits,
                peaks=record.peaks,
            )
        except GpuPredictError as error:
            loop.claim_ended(claim.claim_id, str(error))
            await self._unbind(record, before)
            raise PlanOvertaken(str(error)) from error
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

    async def _unbind(self, record: KernelRecord, before: LeaseState | None) -> None:
        """Put a lease that nobody took back to what it was."""
        loop = self.loop
        if before is LeaseState.SUSPENDED and record.suspended_bytes > 0:
            epoch = await loop.leases.next_epoch_for_suspend(record.kernel_id)
            await loop.leases.suspend(record.kernel_id, epoch, record.used_bytes)
        elif before is None:
            await loop.leases.release(record.kernel_id)
        elif (lease := loop.leases.get(record.kernel_id)) is not None:
            if record.kernel_id not in loop.kernels:
                await loop.leases.release(record.kernel_id)
                return
            await loop.leases.resize(record.kernel_id, min(lease.bytes, record.used_bytes))

    async def _prebind(self, action: Prebind) -> None:
        loop = self.loop
        record = self._idle(action.kernel_id)
        if record.suspended_bytes == 0:
            expires = loop.clock() + loop.settings.reservation_s
            await loop.leases.reserve(record.kernel_id, action.gpu_uuid, action.bytes, expires)
            self.loop.prebound(record, action.gpu_uuid, action.bytes, 0, action.reason)
            return
        record.working = "prebind"
        try:
            lease = await loop.leases.bind(record.kernel_id, action.gpu_uuid, action.bytes)
        except BaseException:
            record.working = None
            raise

        async def restore() -> None:
            try:
                answer = await record.port.bind(
                    lease,
                    cap_bytes=loop.cap_bytes(lease.gpu_uuid, record.kernel_id),
                    claim_id=None,
                    restore=True,
                    peaks=record.peaks,
                )
            except GpuPredictError as error:
                log.warning("Pre-bind of kernel %s failed: %s", record.kernel_id, error)
                record.working = None
                await self._unbind(record, LeaseState.SUSPENDED)
                return
            record.working = None
            restored = int(answer.get("restored_bytes", 0))
            loop.prebound(record, action.gpu_uuid, action.bytes, restored, action.reason)

        self._spawn(restore())

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
            await record.port.bind(
                lease,
                cap_bytes=loop.cap_bytes(lease.gpu_uuid, record.kernel_id),
                claim_id=None,
                restore=False,
                peaks={},
            )
        except GpuPredictError as error:
            raise PlanOvertaken(str(error)) from error

    async def _queue(self, action: Queue) -> None:
        loop = self.loop
        record, claim = loop.kernels.get(action.kernel_id), loop.claims.get(action.claim_id)
        if record is None or claim is None:
            return
        record.decided(loop.clock(), "queue", action.reason)
        if claim.origin != "cell":
            return

        async def tell() -> None:
            try:
                answer = await record.port.tell_queue(
                    action.claim_id, action.position, action.expected_wait_s, action.reason
                )
            except GpuPredictError as error:
                log.debug("Kernel %s: %s", record.kernel_id, error)
                return
            if not answer.get("waits", True):
                loop.claim_ended(action.claim_id, "its kernel waits no more")

        self._spawn(tell())

    async def _refuse(self, action: Refuse) -> None:
        loop = self.loop
        record, claim = loop.kernels.get(action.kernel_id), loop.claims.pop(action.claim_id, None)
        if record is None or claim is None:
            return
        record.decided(loop.clock(), "refuse", action.reason)
        loop.event(
            "claim_refused",
            kernel_id=record.kernel_id,
            claim_id=action.claim_id,
            reason=action.reason,
        )
        late = claim.deadline_s <= loop.clock()
        refusal = ConflictError if late else UnsatisfiableError
        loop.settle(action.claim_id, refusal(action.reason))
        if claim.origin == "cell":
            try:
                await record.port.refuse(action.claim_id, action.reason)
            except GpuPredictError as error:
                log.warning("Kernel %s did not hear its refusal: %s", record.kernel_id, error)

    # ------------------------------------------------------------------ taking back

    async def _reclaim(self, action: Reclaim) -> None:
        await self.reclaim(action.kernel_id, action.reason, action.for_kernel_id)

    async def reclaim(
        self,
        kernel_id: str,
        reason: str,
        for_kernel_id: str | None = None,
        *,
        wait: bool = False,
    ) -> int:
        """Suspend a kernel in place and return the bytes that became free.

        Raises
        ------
        PlanOvertaken
            If the kernel refused or did not answer; nothing was changed.
        """
        loop = self.loop
        record = loop.kernels.get(kernel_id)
        lease = loop.leases.get(kernel_id)
        if record is None or lease is None or record.working is not None:
            raise PlanOvertaken("the kernel is gone or at work")
        if lease.state is LeaseState.SUSPENDED:
            raise PlanOvertaken("its memory was taken back already")
        record.working = "reclaim"
        try:
            epoch = await loop.leases.next_epoch_for_suspend(kernel_id)
            answer = await record.port.reclaim(epoch, wait=wait)
        except GpuPredictError as error:
            record.keep(str(error), loop.clock())
            raise PlanOvertaken(str(error)) from error
        finally:
            record.working = None
        freed = int(answer["freed_bytes"])
        record.used_bytes = int(answer["resident_bytes"])
        record.suspended_bytes = int(answer["suspended_bytes"])
        record.measured_s = loop.clock()
        record.kept = [(str(why), int(size)) for why, size in answer.get("kept", ())]
        record.prebound = None
        await loop.leases.suspend(kernel_id, epoch, record.used_bytes)
        loop.learned(Transfer.SUSPEND, freed, float(answer["seconds"]))
        record.decided(loop.clock(), "reclaim", reason)
        loop.event(
            "reclaimed",
            kernel_id=kernel_id,
            notebook=record.notebook,
            gpu_uuid=lease.gpu_uuid,
            bytes=freed,
            resident_bytes=record.used_bytes,
            kept=[list(kept) for kept in record.kept],
            seconds=answer["seconds"],
            for_kernel_id=for_kernel_id,
            reason=reason,
        )
        return freed

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
            await record.port.bind(
                replace(lease, bytes=0), cap_bytes=None, claim_id=None, restore=False, peaks={}
            )
        except GpuPredictError as error:
            log.warning("Kernel %s did not hear of its release: %s", record.kernel_id, error)

    # ------------------------------------------------------------------ helpers

    def _idle(self, kernel_id: str) -> KernelRecord:
        record = self.loop.kernels.get(kernel_id)
        if record is None or record.working is not None or record.busy:
            raise PlanOvertaken("the kernel is gone or at work")
        return record

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
