"""What kernels say of themselves, and what is done about it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from ..control.records import KernelRecord
from ..core.migration.cost import Transfer
from ..core.model import CellRun, Claim, Outcome
from ..errors import GpuPredictError
from ..kernel import messages as m
from .inputs import seconds, size_bytes

if TYPE_CHECKING:
    from .fleet import Fleet
    from .snapshots import Snapshots

log = logging.getLogger(__name__)

_NOTICES = {cls.msg_type: cls for cls in m.NOTICES}


class Notices:
    """Takes the notices of all kernels."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.loop = fleet.loop
        self.snapshots: Snapshots | None = None

    def take(self, kernel_id: str, msg_type: str, content: dict[str, Any]) -> None:
        """Take a notice as it came over the wire."""
        record = self.loop.kernels.get(kernel_id)
        if record is None:
            return
        cls = _NOTICES.get(msg_type)
        if cls is None:
            log.debug("Kernel %s sent an unknown notice %s", kernel_id, msg_type)
            return
        try:
            self.heard(record, m.decode(cls, content))
        except (GpuPredictError, ValueError, TypeError) as error:
            log.warning("Kernel %s sent a malformed %s: %s", kernel_id, msg_type, error)

    def heard(self, record: KernelRecord, notice: m.Message) -> None:
        """Act on a kernel's notice."""
        loop = self.loop
        match notice:
            case m.StateMessage():
                self._state(record, notice)
            case m.DemandMessage():
                self._memory(record, notice)
                if notice.keep_reason:
                    record.keep(notice.keep_reason, loop.clock())
                loop.wake()
            case m.CellRunMessage():
                fields = {k: v for k, v in notice.content().items() if k != "version"}
                fields["outcome"] = Outcome(fields["outcome"])
                loop.cell_ran(
                    record,
                    CellRun(kernel_id=record.kernel_id, notebook=record.notebook, **fields),
                )
            case m.ClaimMessage():
                self._claim(record, notice)
            case m.ClaimEndMessage():
                loop.claim_ended(notice.claim_id, notice.reason)
            case m.ProgressMessage():
                if self.snapshots is not None:
                    self.snapshots.heard(record, notice)
            case m.CallMessage():
                self.fleet.calls.start(record.kernel_id, notice)

    def _claim(self, record: KernelRecord, notice: m.ClaimMessage) -> None:
        now = self.loop.clock()
        # A claim older than its kernel would go before all others.
        made_s = min(now, max(seconds(notice.made_s, "made_s", math.inf), record.started_s))
        growth = notice.origin == "growth"
        least = record.present_priority if growth else record.priority
        self.loop.claim(
            Claim(
                claim_id=notice.claim_id,
                kernel_id=record.kernel_id,
                bytes=size_bytes(notice.bytes),
                made_s=made_s,
                deadline_s=seconds(notice.deadline_s, "deadline_s", math.inf),
                priority=max(notice.priority, least),
                affinity=notice.affinity,
                critical=notice.critical,
                origin="growth" if growth else "cell",
            )
        )

    def _memory(self, record: KernelRecord, notice: m.StateMessage | m.DemandMessage) -> None:
        """Note what a kernel says that it holds; it does not see that the driver has it."""
        told = notice.used_bytes, notice.suspended_bytes
        if record.checkpointed:
            record.used_before = told
        else:
            record.used_bytes, record.suspended_bytes = told

    def _state(self, record: KernelRecord, notice: m.StateMessage) -> None:
        loop = self.loop
        if notice.event == "busy":
            loop.cell_started(record, notice.running_digest)
            return
        self._memory(record, notice)
        if notice.event == "described" and notice.running_digest and not record.busy:
            record.running_since_s = loop.clock()
            record.running_digest = notice.running_digest
        if notice.event == "restored":
            loop.speeds.learned(Transfer.RESTORE, notice.bytes, notice.seconds)
            lease = loop.leases.get(record.kernel_id)
            loop.event(
                "restored",
                kernel_id=record.kernel_id,
                notebook=record.notebook,
                gpu_uuid=lease.gpu_uuid if lease else None,
                bytes=notice.bytes,
                seconds=notice.seconds,
            )
