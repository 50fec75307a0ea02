"""Leases that no longer fit: reservations nobody used, and GPUs with more held than there is."""

from __future__ import annotations

from ..model import GpuView, KernelView, LeaseState
from ..sizes import format_bytes
from .entry import Entry
from .ledger import Ledger, names, short
from .steps import Wish
from .victims import carry_out, room


def expire_reservations(ledger: Ledger) -> None:
    """Plan the end of each reservation past its grace period that no claim is about to use."""
    for kernel in ledger.reserved:
        lease = kernel.lease
        if lease is None or lease.expires_s is None or lease.expires_s > ledger.now_s:
            continue
        entry = ledger.entry_of(kernel)
        if entry.claim_order is not None or entry.moving:
            continue
        name, size = short(entry.kernel_id), format_bytes(entry.held)
        late_s = ledger.now_s - lease.expires_s
        if entry.state_bytes == 0:
            ledger.release(
                entry,
                f"End the reservation of {size} for {name}: it ran out {late_s:.0f} s ago, unused",
            )
        elif entry.idle and entry.kernel.suspend_by is not None:
            ledger.reclaim(
                entry,
                None,
                f"Take {size} back from {name}: it was brought back ahead of use, and the "
                f"reservation ran out {late_s:.0f} s ago",
            )


def relieve_overcommit(ledger: Ledger) -> None:
    """Plan to bring each GPU back to what it has, and leases up to what their kernels use."""
    for gpu in ledger.gpus.values():
        if not gpu.lost and (ledger.free[gpu.uuid] < 0 or gpu.uuid in ledger.grown):
            _relieve(ledger, gpu)


def _relieve(ledger: Ledger, gpu: GpuView) -> None:
    grown = [e for e in ledger.on_gpu(gpu.uuid) if _outgrew(e)]
    over = -ledger.free[gpu.uuid]
    if over > 0:
        # What is over must go, whoever holds it: priorities order claims, not physics.
        priority = max((e.kernel.priority for e in ledger.on_gpu(gpu.uuid)), default=0)
        wish = Wish(Entry(KernelView("", None)), over, priority)
        steps = room(ledger, gpu.uuid, over, wish, partial=True) or []
        cause = f"{names(grown)} grew" if grown else "others use it"
        because = f"because {gpu.uuid} is over by {format_bytes(over)} ({cause})"
        carry_out(ledger, steps, grown[0].kernel_id if len(grown) == 1 else None, because)
    for entry in grown:
        if _outgrew(entry):
            ledger.resize(
                entry,
                entry.used,
                f"{short(entry.kernel_id)} uses {format_bytes(entry.used)}, more than its lease",
            )


def _outgrew(entry: Entry) -> bool:
    lease = entry.kernel.lease
    return (
        lease is not None
        and entry.state is LeaseState.BOUND
        and not entry.moving
        and entry.kernel.used_bytes > lease.bytes
    )
