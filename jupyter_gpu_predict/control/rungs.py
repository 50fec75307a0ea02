"""By which rung of the ladder a kernel can be taken off its GPU now, and at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.migration.cost import Ability, RungChoice, choose_rung, restore_s, resume_s
from ..core.model import Rung
from ..errors import RefusedError
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

NO_DRIVER = "there is no NVIDIA driver"


def choose_suspension(loop: ControlLoop, record: KernelRecord) -> RungChoice:
    """Return the cheapest way to suspend a kernel between its cells now.

    Raises
    ------
    RefusedError
        If there is none; the message says why.
    """
    if record.checkpointed:
        raise RefusedError("the driver has its memory already")
    keeps = record.keeps(loop.clock())
    return choose_rung(
        loop.speeds.now,
        device_bytes=record.used_bytes,
        process_bytes=sum(record.process_bytes.values()),
        to_other_gpu=False,
        ability=Ability(
            why_not_in_place=keeps if record.port.has_agent else "it has no agent",
            why_not_checkpoint=why_no_checkpoint(loop, record, mid_cell=False),
        ),
    )


def why_no_checkpoint(loop: ControlLoop, record: KernelRecord, *, mid_cell: bool) -> str | None:
    """Return why the driver cannot suspend a kernel now."""
    if loop.checkpoints is None:
        return NO_DRIVER
    if record.gpu_processes > 1:
        return f"{record.gpu_processes} GPU processes of it may be talking to each other"
    if len(record.process_bytes) > 1:
        # Its lease, and so its claim for the way back, is about one of them.
        return f"it has memory on {len(record.process_bytes)} GPUs"
    if loop.operations.saving(record.kernel_id):
        return "a snapshot of it is being taken"
    if not mid_cell and (keeps := record.keeps(loop.clock())):
        return keeps
    return loop.checkpoints.why_not(record.kernel_id, mid_cell=mid_cell)


def restore_cost_s(loop: ControlLoop, record: KernelRecord, rung: Rung | None) -> float:
    """Return the predicted time to bring a kernel's state back from where it is, or would be."""
    if record.checkpointed:
        return resume_s(loop.speeds.now, record.suspended_bytes)
    if rung is Rung.DRIVER_CHECKPOINT and not record.suspended_bytes:
        whole = max(record.used_bytes, sum(record.process_bytes.values()))
        return resume_s(loop.speeds.now, whole)
    return restore_s(loop.speeds.now, record.suspended_bytes or record.used_bytes)


def why_no_move(loop: ControlLoop, record: KernelRecord, target_uuid: str) -> str | None:
    """Return why the driver cannot bring a kernel back on another GPU."""
    lease = loop.leases.get(record.kernel_id)
    if loop.checkpoints is None or lease is None:
        return NO_DRIVER
    if record.busy and not record.checkpointed:
        return "it runs a cell"
    source, target = loop.gpu_name(lease.gpu_uuid), loop.gpu_name(target_uuid)
    if source != target:
        return f"{target} is of another kind than {source}"
    return loop.checkpoints.why_not_move(record.kernel_id, target_uuid)


def choose_move(loop: ControlLoop, record: KernelRecord, target_uuid: str) -> RungChoice:
    """Return the cheapest way to bring a kernel to another GPU.

    Raises
    ------
    RefusedError
        If there is none; the message says why.
    """
    why_not = why_no_move(loop, record, target_uuid)
    if why_not is None and not record.checkpointed:
        why_not = why_no_checkpoint(loop, record, mid_cell=False)
    no_relaunch = None if record.port.has_agent else "it has no agent"
    if record.checkpointed:
        no_relaunch = "the driver has its memory"
    return choose_rung(
        loop.speeds.now,
        device_bytes=record.used_bytes + record.suspended_bytes,
        process_bytes=sum(record.process_bytes.values()),
        state_bytes=record.used_bytes + record.suspended_bytes,
        to_other_gpu=True,
        ability=Ability(why_not_checkpoint=why_not, why_not_relaunch=no_relaunch),
    )
