"""Feeds the energy accounts with what the GPUs say at each turn of the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.power import PowerAccounts, PowerReading

if TYPE_CHECKING:
    from .loop import ControlLoop


def read_power(loop: ControlLoop, accounts: PowerAccounts) -> PowerAccounts:
    """Return the accounts after the present state of every GPU.

    MIG slices draw from one GPU, which is read once for all of them. A simulated GPU has no energy,
    and a lost one tells none.
    """
    now = loop.clock()
    for uuid in dict.fromkeys(s.parent or s.uuid for s in loop.statuses):
        parts = [s for s in loop.statuses if uuid in {s.uuid, s.parent} and not s.lost]
        if not parts or parts[0].simulated:
            continue
        leases = [x for s in parts for x in loop.leases.on(s.uuid) if x.held_bytes > 0]
        records = [loop.kernels[x.kernel_id] for x in leases if x.kernel_id in loop.kernels]
        # A slice tells no utilization: work that no lease stands for is not seen there.
        busy = any(r.busy for r in records) or any((s.utilization or 0.0) > 0.0 for s in parts)
        told = parts[0]
        accounts = accounts.read(
            PowerReading(uuid, now, told.energy_j, told.power_w, len(leases), busy)
        )
    return accounts
