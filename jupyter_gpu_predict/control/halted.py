"""Kernels that stand still because the driver has their memory: who claims for them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.model import Claim, Lease, LeaseState
from ..errors import GpuPredictError
from .ports import Checkpoints, Resumed
from .records import KernelRecord
from .switching import tell_lease

if TYPE_CHECKING:
    from .loop import ControlLoop

UNASKED_S = 1.0
"""How long a kernel with the agent may be at work without a claim before it must be stuck on
memory that the driver has: a cell claims at once, but e.g. Shift-Tab on a tensor does not."""


class Halted:
    """Claims for kernels that cannot, and takes over those that an earlier server left."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self._recovered = False

    def claim(self) -> None:
        """Claim for kernels that stand still because the driver has their memory."""
        for record in list(self.loop.kernels.values()):
            claim_id = _claim_id(record)
            known = self.loop.claims.get(claim_id)
            if record.working is not None:
                continue
            if not record.checkpointed or not self._stands_still(record):
                if known is not None:
                    self.loop.claim_ended(claim_id, "its cell has ended")
                self._let_cell_end(record)
            elif known is None:
                self._claim(record, claim_id)

    def _claim(self, record: KernelRecord, claim_id: str) -> None:
        now = self.loop.clock()
        if now < record.no_resume_before_s:
            return
        if record.preempted_s is None and record.port.has_agent:
            record.preempted_s = now
        halted = record.preempted_s is not None
        self.loop.claim(
            Claim(
                claim_id=claim_id,
                kernel_id=record.kernel_id,
                bytes=max(1, record.suspended_bytes + record.used_bytes),
                made_s=now if record.preempted_s is None else record.preempted_s,
                deadline_s=math.inf,
                priority=record.present_priority,
                origin="preempted" if halted else "cell",
            )
        )

    def _stands_still(self, record: KernelRecord) -> bool:
        """Whether the kernel is at work, which it cannot get on with."""
        sent_s = record.unanswered_s
        if sent_s is not None and sent_s <= record.held_since_s:
            sent_s = None  # that one began before, or its answer went to a tab that is closed
        known = (record.running_since_s, record.shell_busy_s, sent_s)
        begun = [s for s in known if s is not None]
        if record.preempted_s is not None:
            # One that was taken over from an earlier server may not have said yet that it runs.
            return bool(begun) or not record.ready or record.used_before is None
        if not begun or not record.port.has_agent:
            return bool(begun)
        now = self.loop.clock()
        asks = any(c.kernel_id == record.kernel_id for c in self.loop.claims.values())
        return not asks and now >= record.no_resume_before_s and now - min(begun) >= UNASKED_S

    def _let_cell_end(self, record: KernelRecord) -> None:
        """Note that a halted cell has ended by itself: it did not touch the GPU any more."""
        if record.preempted_s is None or not record.checkpointed:
            return
        record.preempted_s = None
        lease = self.loop.leases.get(record.kernel_id)
        if lease is not None and record.port.has_agent:
            self.loop.reconciler.spawn(self._tell_halted(record, replace(lease, bytes=0)))

    async def _tell_halted(self, record: KernelRecord, lease: Lease) -> None:
        """Tell a kernel that the driver has it; one that does not hear claims for what it knows."""
        try:
            await tell_lease(record, lease, checkpointed=True)
        except GpuPredictError:
            if record.checkpointed:
                await self.loop.switching.tell_again(record, lease)

    # ------------------------------------------------------------------ after a crash

    def taken_over(self, record: KernelRecord) -> None:
        """Note what the driver holds of a kernel that an earlier server left."""
        driver = self.loop.checkpoints
        if driver is None or not driver.held(record.kernel_id):
            return
        freed = sum(driver.gpus(record.kernel_id).values())
        record.held_by_driver(freed, 0, self.loop.clock())
        record.used_before = None
        if driver.in_mid_cell(record.kernel_id):
            record.preempted_s = self.loop.clock()
            record.burst.halted = True
        if not self._recovered:
            # The loop turns already, and is to leave it alone until that is known for certain.
            record.working = "recover"

    async def recover(self) -> None:
        """Complete or undo what a crash cut short, and book what came of it."""
        loop, driver = self.loop, self.loop.checkpoints
        self._recovered = True
        if driver is None:
            return
        held = [r for r in loop.kernels.values() if r.working == "recover"]
        try:
            await driver.recover([r.kernel_id for r in held])
            await loop.facts.read_devices()
            for record in held:
                if loop.kernels.get(record.kernel_id) is record:
                    await self._book(driver, record)
            for record in list(loop.kernels.values()):
                await self._book_gpu(record)
        finally:
            for record in held:
                record.working = None
            loop.wake()

    async def _book(self, driver: Checkpoints, record: KernelRecord) -> None:
        """Book whether the driver still has a kernel that an earlier server left."""
        leases = self.loop.leases
        lease = leases.get(record.kernel_id)
        if not driver.held(record.kernel_id):
            brought = record.suspended_bytes
            self.loop.switching.is_back(record, Resumed(brought, 0.0))
            if lease is not None and lease.state is LeaseState.SUSPENDED:
                wanted = max(lease.bytes, brought)
                lease = await leases.bind(record.kernel_id, lease.gpu_uuid, wanted)
            if lease is not None:
                await self.loop.switching.tell_again(record, lease)
        elif (
            driver.suspended(record.kernel_id)
            and lease is not None
            and lease.state is not LeaseState.SUSPENDED
        ):
            epoch = await leases.next_epoch_for_suspend(record.kernel_id)
            await leases.suspend(record.kernel_id, epoch, 0)

    async def _book_gpu(self, record: KernelRecord) -> None:
        """Book a kernel where it is, if the server ended after it had come back elsewhere."""
        lease = self.loop.leases.get(record.kernel_id)
        if lease is None or record.checkpointed or len(record.process_bytes) != 1:
            return
        (gpu_uuid,) = record.process_bytes
        if gpu_uuid != lease.gpu_uuid:
            moved = await self.loop.leases.rebook(lease, gpu_uuid)
            if moved is not None:
                record.gpu_uuid = gpu_uuid
                await self.loop.switching.tell_again(record, moved)


def waits_at_gate(record: KernelRecord, claim: Claim) -> bool:
    """Whether a claim is one that its kernel has made, and so hears of."""
    return claim.origin in ("cell", "growth") and record.port.has_agent


def _claim_id(record: KernelRecord) -> str:
    return f"halted-{record.kernel_id}"
