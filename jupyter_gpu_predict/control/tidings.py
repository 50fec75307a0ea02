"""What the cells that wait hear of their claims."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from ..core.model import Claim
from ..core.plans import Queue, Refuse
from ..errors import CheckpointRefusedError, ConflictError, GpuPredictError, UnsatisfiableError
from .halted import waits_at_gate
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)


class Tidings:
    """Tells waiting cells their place, their refusal, and why their kernel is not back."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop

    async def queue(self, action: Queue) -> None:
        """Tell a waiting cell its place."""
        loop = self.loop
        record, claim = loop.kernels.get(action.kernel_id), loop.claims.get(action.claim_id)
        if record is None or claim is None:
            return
        record.decided(loop.clock(), "queue", action.reason)
        if not waits_at_gate(record, claim):
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

        loop.reconciler.spawn(tell())

    async def refuse(self, action: Refuse) -> None:
        """End a claim without a grant."""
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
        if waits_at_gate(record, claim):
            try:
                await record.port.refuse(action.claim_id, action.reason)
            except GpuPredictError as error:
                log.warning("Kernel %s did not hear its refusal: %s", record.kernel_id, error)

    async def not_resumed(self, record: KernelRecord, claim: Claim, error: GpuPredictError) -> None:
        """Tell the cell that waits for a kernel which the driver did not bring back.

        What was not even begun may pass (another process has the memory): the cell goes on waiting
        and its claim comes again. What failed it hears of.
        """
        if not waits_at_gate(record, claim):
            return  # what stands still is claimed for again, and others hear it from the claim
        if isinstance(error, CheckpointRefusedError):
            await self._try(record.port.tell_queue(claim.claim_id, 1, None, str(error)), record)
        else:
            await self._try(record.port.refuse(claim.claim_id, str(error)), record)

    async def _try(self, told: Awaitable[Any], record: KernelRecord) -> None:
        try:
            await told
        except GpuPredictError as error:
            log.warning("Kernel %s was not told: %s", record.kernel_id, error)
