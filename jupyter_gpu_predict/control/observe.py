"""From what is known to the picture a decision is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.model import ClusterView, GpuView, KernelView, LeaseState, RiskLevel, Rung
from ..errors import RefusedError
from .ports import RESUME_MARGIN_BYTES
from .records import KernelRecord
from .rungs import choose_suspension, restore_cost_s, why_no_checkpoint

if TYPE_CHECKING:
    from .loop import ControlLoop


def build_view(loop: ControlLoop) -> ClusterView:
    """Return the cluster as it is now."""
    now = loop.clock()
    return ClusterView(
        now_s=now,
        gpus=tuple(
            GpuView(
                uuid=s.uuid,
                index=s.index,
                name=s.name,
                total_bytes=s.total_bytes,
                foreign_bytes=foreign_bytes(loop, s.uuid),
                cordoned=s.uuid in loop.cordoned,
                lost=s.lost,
                whole=s.parent is not None,
                risk=RiskLevel.CRITICAL if s.uuid in loop.draining else loop.risks[s.uuid].level,
            )
            for s in loop.statuses
        ),
        kernels=tuple(_kernel_view(loop, r, now) for r in loop.kernels.values()),
        claims=tuple(loop.claims.values()),
        settings=loop.settings,
    )


def _kernel_view(loop: ControlLoop, record: KernelRecord, now: float) -> KernelView:
    asks = {c.origin for c in loop.claims.values() if c.kernel_id == record.kernel_id}
    waiting = "cell" in asks
    usual = record.usual_duration_s(record.running_digest)
    started = record.running_since_s
    rung: Rung | None = None
    try:
        choice = choose_suspension(loop, record)
        rung, why = choice.rung, choice.reason
    except RefusedError as error:
        why = str(error)
    return KernelView(
        kernel_id=record.kernel_id,
        lease=loop.leases.get(record.kernel_id),
        used_bytes=record.used_bytes,
        suspended_bytes=_needed_to_come_back(loop, record),
        busy=record.busy
        or bool(asks & {"cell", "growth"})
        or not record.ready
        or record.about_to_run(now),
        waiting=waiting,
        started_s=started,
        expected_end_s=None if started is None or usual is None else max(now, started + usual),
        last_used_s=record.last_used_s,
        queued_runs=record.queued_runs,
        pinned=record.pinned,
        priority=record.present_priority,
        restore_cost_s=restore_cost_s(loop, record, rung),
        keep_reason=record.keeps(now),
        has_agent=record.port.has_agent,
        migrating=record.working is not None,
        forecast=record.forecast,
        duty=record.duty(now),
        last_snapshot_s=record.last_snapshot_s,
        movable=(record.port.has_agent or record.checkpointed)
        and record.working is None
        and now >= record.no_move_before_s,
        target_gpu_uuid=record.target_gpu_uuid,
        target_bytes=record.target_bytes,
        age_s=now - record.started_s,
        changed_s=record.changed_s,
        savable=record.working is None
        and not record.checkpointed
        and now >= record.no_save_before_s
        and not loop.operations.saving(record.kernel_id),
        suspend_by=rung,
        suspend_why=why,
        why_not_preempt=why_no_checkpoint(loop, record, mid_cell=True),
        attained_s=record.burst.attained_s(now),
        switched_s=record.switched_s,
        checkpointed=record.checkpointed,
        preempted_s=record.preempted_s,
        no_resume_before_s=record.no_resume_before_s,
        limit_bytes=record.limit_bytes,
    )


def _needed_to_come_back(loop: ControlLoop, record: KernelRecord) -> int:
    """Return a kernel's suspended bytes, with what the driver may want beside them."""
    lease = loop.leases.get(record.kernel_id)
    if not record.checkpointed or lease is None or lease.state is not LeaseState.SUSPENDED:
        return record.suspended_bytes
    # A GPU of an earlier server may not be there any more.
    total = next((s.total_bytes for s in loop.statuses if s.uuid == lease.gpu_uuid), 0)
    room = total - record.suspended_bytes
    return record.suspended_bytes + max(0, min(RESUME_MARGIN_BYTES, room))


def free_bytes(loop: ControlLoop, gpu_uuid: str, but_for: str | None = None) -> int:
    """Return what nobody holds of a GPU, kernel `but_for` apart, or is on its way to."""
    status = loop.gpu(gpu_uuid)
    others = [x for x in loop.leases.on(gpu_uuid) if x.kernel_id != but_for]
    arriving = sum(r.target_bytes for r in loop.kernels.values() if r.target_gpu_uuid == gpu_uuid)
    held = sum(x.held_bytes for x in others)
    free = status.total_bytes - foreign_bytes(loop, gpu_uuid) - held - arriving
    in_use = arriving or any(x.held_bytes for x in others if x.state is not LeaseState.SUSPENDED)
    # A MIG slice has one user at a time.
    return min(0, free) if status.parent is not None and in_use else free


def foreign_bytes(loop: ControlLoop, gpu_uuid: str) -> int:
    """Return memory of processes that hold no lease of ours."""
    status = loop.gpu(gpu_uuid)
    if status.simulated or status.used_bytes is None:
        return 0
    own = 0
    for record in loop.kernels.values():
        lease = loop.leases.get(record.kernel_id)
        if lease is not None and lease.gpu_uuid == gpu_uuid:
            # What a kernel holds beyond what is booked for it (a CUDA context, another library's
            # pool) is as good as foreign.
            held = record.process_bytes.get(gpu_uuid, 0)
            own += min(held, max(lease.held_bytes, record.used_bytes))
    return max(0, status.used_bytes - own)
