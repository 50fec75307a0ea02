"""Kernels that crowd a GPU go to one that has fallen free."""

from __future__ import annotations

from ..model import GpuView, LeaseState
from ..sizes import format_bytes
from .capacity import RISK_RANK, takes_new_leases
from .ledger import Entry, Ledger, short

BELIEVED_AFTER_S = 300.0
"""How old a kernel must be before its duty counts as known: a move costs seconds, and the duty of a
session that has just begun says little about the rest of it."""

_IN_USE = (LeaseState.BOUND, LeaseState.RESERVED)


def spread_out(ledger: Ledger) -> None:
    """Plan at most one move off a GPU whose known duties sum to more than `max_duty`.

    Only of an idle kernel that is not about to run, to a GPU where the duties stay within the
    bound; so no kernel can be sent back and forth. Nothing moves while a claim waits.
    """
    if ledger.is_moving():
        return
    moves = [
        (
            entry.state_bytes,
            entry.kernel_id,
            ledger.settings.consolidate and ledger.is_empty(target),
            target.index,
            entry,
            target,
        )
        for gpu in ledger.gpus.values()
        if _duty(ledger, gpu) > ledger.settings.max_duty
        for entry in ledger.on_gpu[gpu.uuid].values()
        if entry.kernel.duty and may_go(ledger, entry)
        for target in ledger.gpus.values()
        if target is not gpu and _has_room(ledger, target, gpu, entry)
    ]
    if not moves:
        return
    *_, entry, target = min(moves, key=lambda move: move[:4])
    source = ledger.gpus[entry.gpu_uuid or ""]
    ledger.migrate(
        entry,
        target,
        entry.held,
        f"Move {short(entry.kernel_id)} ({format_bytes(entry.state_bytes)}) to {target.uuid}, "
        f"which has fallen free: kernels on {source.uuid} are busy "
        f"{_duty(ledger, source):.0%} in all",
    )


def _duty(ledger: Ledger, gpu: GpuView) -> float:
    return sum(
        e.kernel.duty or 0.0
        for e in ledger.on_gpu[gpu.uuid].values()
        if e.state in _IN_USE and e.kernel.age_s >= BELIEVED_AFTER_S
    )


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
        and not ledger.in_grace(entry)
        and ledger.need_probability(entry) < ledger.settings.prebind_threshold
    )


def _has_room(ledger: Ledger, target: GpuView, source: GpuView, entry: Entry) -> bool:
    duty = ledger.duty_sum(target.uuid, entry)
    return (
        takes_new_leases(target)
        and RISK_RANK[target.risk] <= RISK_RANK[source.risk]
        and ledger.free[target.uuid] >= entry.held
        and duty is not None
        and duty <= ledger.settings.max_duty
    )
