"""Memory ahead of use: state brought back, or set aside, before the cell asks."""

from __future__ import annotations

import math

from ..model import GpuView, KernelView, LeaseState
from ..sizes import format_bytes
from .capacity import takes_new_leases
from .entry import Entry
from .ledger import CALM_S, Ledger, short
from .steps import Stage, Wish
from .victims import carry_out, room


def prebind(ledger: Ledger) -> None:
    """Plan pre-binds on GPUs on which no claim waits, the most worthwhile first."""
    if not ledger.settings.prebind:
        return
    wanted = [
        (probability, entry)
        for kernel in ledger.away
        if (probability := _probability(ledger, kernel)) > 0.0
        and not (entry := ledger.entry_of(kernel)).settled
        and entry.claim_order is None
    ]
    wanted.sort(key=lambda w: (-w[0] * w[1].kernel.restore_cost_s, -w[0], w[1].kernel_id))
    for probability, entry in wanted:
        if entry.state is LeaseState.SUSPENDED:
            _bring_back(ledger, entry, probability)
        else:
            _set_aside(ledger, entry, probability)


def _probability(ledger: Ledger, kernel: KernelView) -> float:
    """Return P(needed soon) of a kernel that may be pre-bound, 0 for the others."""
    if kernel.waiting or kernel.migrating:
        return 0.0
    forecast, lease, settings = kernel.forecast, kernel.lease, ledger.settings
    # Without the agent nobody makes use of a reservation, but the driver brings back what it holds.
    if not (kernel.has_agent or kernel.checkpointed):
        return 0.0
    if ledger.now_s < kernel.no_resume_before_s:
        return 0.0  # it has just failed to come back
    # What has just been taken back, or has just run out, is not fetched at once again.
    if lease is not None and ledger.now_s - lease.since_s < max(CALM_S, settings.grace_period_s):
        return 0.0
    if lease is not None and lease.state is LeaseState.SUSPENDED:
        if kernel.busy or kernel.suspended_bytes == 0:
            return 0.0
    elif forecast is None:
        return 0.0
    if kernel.queued_runs > 0:
        return 1.0
    if forecast is None:
        return 0.0
    probability = forecast.need_probability(settings.prebind_horizon_s)
    return probability if probability >= settings.prebind_threshold else 0.0


def _high_bytes(ledger: Ledger, entry: Entry) -> int:
    """Return the high quantile of the forecast's memory, 0 without one."""
    if entry.kernel.forecast is None:
        return 0
    high = entry.kernel.forecast.memory_bytes(ledger.settings.prebind_horizon_s).high
    return math.ceil(high) if math.isfinite(high) and high > 0 else 0


def _open(ledger: Ledger, gpu: GpuView | None) -> bool:
    return gpu is not None and takes_new_leases(gpu) and gpu.uuid not in ledger.blocked


def _bring_back(ledger: Ledger, entry: Entry, probability: float) -> None:
    gpu = ledger.gpu_of(entry)
    if gpu is None or not _open(ledger, gpu):
        return
    name, size = short(entry.kernel_id), entry.state_bytes
    missing = size - entry.held - ledger.free[gpu.uuid]
    if missing > 0 and not _swap_in(ledger, entry, gpu, missing, probability):
        return
    within_reach = ledger.free[gpu.uuid] + entry.held
    grant = max(size, min(_high_bytes(ledger, entry), within_reach))
    ledger.prebind(
        entry,
        gpu,
        grant,
        f"Bring {format_bytes(entry.suspended)} of {name} back to {gpu.uuid} ahead of use "
        f"({_why(ledger, entry, probability)})",
    )


def _swap_in(ledger: Ledger, entry: Entry, gpu: GpuView, missing: int, probability: float) -> bool:
    """Plan to free `missing` bytes if that is worth it; return whether it was."""
    gain_s = probability * entry.kernel.restore_cost_s
    wish = Wish(entry, missing, entry.kernel.priority, below=probability)
    steps = room(ledger, gpu.uuid, missing, wish)
    if steps is None:
        return False
    # A victim pays its way out and its way back, each about as long as its restore.
    loss_s = sum(
        2 * ledger.need_probability(s.entry) * s.entry.kernel.restore_cost_s
        for s in steps
        if s.stage is Stage.IDLE
    )
    if gain_s <= loss_s:
        return False
    because = (
        f"because {short(entry.kernel_id)} is about to need {format_bytes(entry.state_bytes)} "
        f"({_why(ledger, entry, probability)}; {gain_s:.2f} s to gain, {loss_s:.2f} s to lose)"
    )
    carry_out(ledger, steps, entry.kernel_id, because)
    return True


def _set_aside(ledger: Ledger, entry: Entry, probability: float) -> None:
    size = _high_bytes(ledger, entry)
    if size == 0:
        return
    gpu = ledger.open_gpus.best(entry, size)
    if gpu is not None:
        ledger.prebind(
            entry,
            gpu,
            size,
            f"Set {format_bytes(size)} aside on {gpu.uuid} for {short(entry.kernel_id)} "
            f"({_why(ledger, entry, probability)})",
        )


def _why(ledger: Ledger, entry: Entry, probability: float) -> str:
    if entry.kernel.queued_runs > 0:
        return f"{entry.kernel.queued_runs} more cells are queued"
    return f"P(needed in {ledger.settings.prebind_horizon_s:g} s) = {probability:.2f}"
