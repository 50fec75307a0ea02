"""Memory ahead of use: state brought back, or set aside, before the cell asks."""

from __future__ import annotations

import math

from ..model import GpuView, LeaseState
from ..sizes import format_bytes
from .capacity import best_fit, takes_new_leases
from .ledger import Entry, Ledger, short
from .victims import Stage, Wish, carry_out, room


def prebind(ledger: Ledger) -> None:
    """Plan pre-binds on GPUs on which no claim waits, the most worthwhile first."""
    if not ledger.settings.prebind:
        return
    wanted = [(p, e) for e in ledger.entries.values() if (p := _probability(ledger, e)) > 0.0]
    wanted.sort(key=lambda w: (-w[0] * w[1].kernel.restore_cost_s, -w[0], w[1].kernel_id))
    for probability, entry in wanted:
        if entry.state is LeaseState.SUSPENDED:
            _bring_back(ledger, entry, probability)
        else:
            _set_aside(ledger, entry, probability)


def _probability(ledger: Ledger, entry: Entry) -> float:
    """Return P(needed soon) of a kernel that may be pre-bound, 0 for the others."""
    kernel, lease = entry.kernel, entry.kernel.lease
    if entry.moving or entry.settled or entry.claim_order is not None or kernel.waiting:
        return 0.0
    # Without the agent nobody makes use of a reservation, but the driver brings back what it holds.
    if not (kernel.has_agent or kernel.checkpointed):
        return 0.0
    if entry.state not in (None, LeaseState.SUSPENDED):
        return 0.0
    if ledger.now_s < kernel.no_resume_before_s:
        return 0.0  # it has just failed to come back
    # What has just been taken back, or has just run out, is not fetched at once again.
    if lease is not None and ledger.now_s - lease.since_s < ledger.settings.grace_period_s:
        return 0.0
    if entry.state is LeaseState.SUSPENDED:
        likely = not kernel.busy and entry.suspended > 0
    else:
        likely = kernel.forecast is not None
    if not likely:
        return 0.0
    if kernel.queued_runs > 0:
        return 1.0
    if kernel.forecast is None:
        return 0.0
    probability = kernel.forecast.need_probability(ledger.settings.prebind_horizon_s)
    return probability if probability >= ledger.settings.prebind_threshold else 0.0


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
    fits = [
        ledger.fit(g, ledger.free[g.uuid] - size, entry)
        for g in ledger.gpus.values()
        if _open(ledger, g) and ledger.free[g.uuid] >= size
    ]
    fit = best_fit(fits, ledger.settings.max_duty)
    if fit is not None:
        ledger.prebind(
            entry,
            fit.gpu,
            size,
            f"Set {format_bytes(size)} aside on {fit.gpu.uuid} for {short(entry.kernel_id)} "
            f"({_why(ledger, entry, probability)})",
        )


def _why(ledger: Ledger, entry: Entry, probability: float) -> str:
    if entry.kernel.queued_runs > 0:
        return f"{entry.kernel.queued_runs} more cells are queued"
    return f"P(needed in {ledger.settings.prebind_horizon_s:g} s) = {probability:.2f}"
