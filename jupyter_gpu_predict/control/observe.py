"""From what is known to the picture a decision is made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.migration.cost import restore_s
from ..core.model import ClusterView, GpuView, KernelView, RiskLevel
from .records import KernelRecord

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
                risk=RiskLevel.CRITICAL if s.uuid in loop.draining else loop.risks[s.uuid].level,
            )
            for s in loop.statuses
        ),
        kernels=tuple(_kernel_view(loop, r, now) for r in loop.kernels.values()),
        claims=tuple(loop.claims.values()),
        settings=loop.settings,
    )


def _kernel_view(loop: ControlLoop, record: KernelRecord, now: float) -> KernelView:
    waiting = any(
        c.kernel_id == record.kernel_id and c.origin == "cell" for c in loop.claims.values()
    )
    usual = record.usual_duration_s(record.running_digest)
    started = record.running_since_s
    return KernelView(
        kernel_id=record.kernel_id,
        lease=loop.leases.get(record.kernel_id),
        used_bytes=record.used_bytes,
        suspended_bytes=record.suspended_bytes,
        busy=record.busy or waiting or not record.ready or record.about_to_run(now),
        waiting=waiting,
        started_s=started,
        expected_end_s=None if started is None or usual is None else max(now, started + usual),
        last_used_s=record.last_used_s,
        queued_runs=record.queued_runs,
        pinned=record.pinned,
        priority=record.priority,
        restore_cost_s=restore_s(loop.bandwidths, record.suspended_bytes or record.used_bytes),
        keep_reason=record.keeps(now),
        has_agent=record.port.has_agent,
        migrating=record.working is not None,
        forecast=record.forecast,
        duty=record.duty(now),
        last_snapshot_s=record.last_snapshot_s,
        movable=record.port.has_agent and record.working is None and now >= record.no_move_before_s,
        target_gpu_uuid=record.target_gpu_uuid,
        target_bytes=record.target_bytes,
        age_s=now - record.started_s,
        changed_s=record.changed_s,
        savable=record.working is None
        and now >= record.no_save_before_s
        and not loop.operations.saving(record.kernel_id),
    )


def foreign_bytes(loop: ControlLoop, gpu_uuid: str) -> int:
    """Return memory of processes that hold no lease of ours."""
    status = loop.gpu(gpu_uuid)
    if status.simulated or status.used_bytes is None:
        return 0
    by_pid = dict(status.processes)
    own = 0
    for record in loop.kernels.values():
        lease = loop.leases.get(record.kernel_id)
        if lease is not None and lease.gpu_uuid == gpu_uuid:
            # What a kernel holds beyond what is booked for it (a CUDA context, another library's
            # pool, all of an agentless kernel's) is as good as foreign.
            held = sum(by_pid.get(pid, 0) for pid in record.port.pids())
            own += min(held, max(lease.held_bytes, record.used_bytes))
    return max(0, status.used_bytes - own)
