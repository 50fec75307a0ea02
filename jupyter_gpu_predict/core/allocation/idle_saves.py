"""When a kernel's state is saved without being asked for."""

from __future__ import annotations

from ..plans import TakeSnapshot
from .ledger import Ledger, short


def save_idle(ledger: Ledger) -> None:
    """Plan snapshots of kernels that have changed since their last one and now lie idle."""
    settings = ledger.settings
    if not settings.autosave or settings.autosave_idle_s == 0:
        return
    planned = {getattr(a, "kernel_id", None) for a in ledger.actions}
    for kernel in ledger.kernels:
        if kernel.changed_s is None or not (kernel.has_agent and kernel.savable):
            continue
        idle_s = ledger.now_s - kernel.changed_s
        if idle_s < settings.autosave_idle_s:
            continue
        entry = ledger.entry_of(kernel)
        if not entry.idle or entry.moving or kernel.queued_runs or entry.kernel_id in planned:
            continue
        if entry.frozen:
            continue
        name = short(entry.kernel_id)
        why = f"Save the state of {name}: it has changed and lain idle for {idle_s:.0f} s"
        ledger.actions.append(TakeSnapshot(entry.kernel_id, why, "idle"))
