"""Kernels that crowd a GPU go to one that has fallen free."""

from __future__ import annotations

from ..model import GpuView, LeaseState
from ..sizes import format_bytes
from .capacity import risk_rank, state_bytes
from .entry import Entry
from .ledger import Ledger, short
from .targets import Targets

BELIEVED_AFTER_S = 300.0
"""How old a kernel must be before its duty counts as known: a move costs seconds, and the duty of a
session that has just begun says little about the rest of it."""


def spread_out(ledger: Ledger) -> None:
    """Plan at most one move off a GPU whose known duties sum to more than `max_duty`.

    Only of an idle kernel that is not about to run, to a GPU where the duties stay within the
    bound; so no kernel can be sent back and forth. Nothing moves while a claim waits.
    """
    if ledger.is_moving():
        return
    max_duty = ledger.settings.max_duty
    crowded = [
        g
        for g in ledger.gpus.values()
        if ledger.duty(g.uuid) > max_duty and _duty(ledger, g) > max_duty
    ]
    if not crowded:
        return
    targets = Targets((g, ledger.free[g.uuid], ledger.duty(g.uuid)) for g in ledger.open_gpus.gpus)
    most = max_duty - targets.least_duty
    leaving = [
        (state_bytes(kernel), kernel.kernel_id, source)
        for source in crowded
        for kernel in ledger.in_use[source.uuid].values()
        if kernel.duty and kernel.duty <= most and kernel.movable and not kernel.busy
    ]
    for _, kernel_id, source in sorted(leaving, key=lambda k: k[:2]):
        entry = ledger.entry(kernel_id)
        spare = max_duty - (entry.kernel.duty or 0.0)
        if targets.has(source, entry.held, spare) and may_go(ledger, entry):
            target = _target(ledger, entry, source)
            if target is not None:
                break
    else:
        return
    ledger.migrate(
        entry,
        target,
        entry.held,
        f"Move {short(entry.kernel_id)} ({format_bytes(entry.state_bytes)}) to {target.uuid}, "
        f"which has fallen free: kernels on {source.uuid} are busy "
        f"{_duty(ledger, source):.0%} in all",
    )


def _duty(ledger: Ledger, gpu: GpuView) -> float:
    users = ledger.in_use[gpu.uuid].values()
    return sum([k.duty for k in users if k.duty and k.age_s >= BELIEVED_AFTER_S])


def may_go(ledger: Ledger, entry: Entry) -> bool:
    """Return whether an idle kernel may go to another GPU without its user noticing."""
    kernel = entry.kernel
    return (
        entry.state is LeaseState.BOUND
        and entry.idle
        and not (entry.moving or entry.settled or kernel.pinned)
        and kernel.movable
        and kernel.keep_reason is None
        and kernel.age_s >= BELIEVED_AFTER_S
        and ledger.is_calm(entry)
        and ledger.need_probability(entry) < ledger.settings.prebind_threshold
    )


def _target(ledger: Ledger, entry: Entry, source: GpuView) -> GpuView | None:
    """Return the GPU to go to, one that is in use already before one kept empty."""
    return min(
        (
            g
            for g in ledger.open_gpus.gpus
            if g is not source and _has_room(ledger, g, source, entry)
        ),
        key=lambda g: (ledger.settings.consolidate and ledger.is_empty(g), g.index),
        default=None,
    )


def _has_room(ledger: Ledger, target: GpuView, source: GpuView, entry: Entry) -> bool:
    duty = ledger.duty_sum(target.uuid, entry)
    return (
        risk_rank(target) <= risk_rank(source)
        and ledger.free[target.uuid] >= entry.held
        and duty is not None
        and duty <= ledger.settings.max_duty
    )
