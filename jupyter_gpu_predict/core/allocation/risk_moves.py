"""What is done about GPUs that may fail: snapshots at a warning, moves on hard evidence."""

from __future__ import annotations

from ..model import GpuView, LeaseState, RiskLevel
from ..plans import Cordon, Migrate, TakeSnapshot
from ..sizes import format_bytes
from .capacity import RISK_RANK, takes_new_leases
from .ledger import Entry, Ledger, names, short
from .victims import Step, Wish, carry_out, cost_key, room, slack_bytes


def cordon_failing(ledger: Ledger) -> None:
    """Plan a cordon for each critical or lost GPU that has none."""
    for gpu in ledger.gpus.values():
        if not _failing(gpu) or gpu.cordoned:
            continue
        stuck = [e for e in ledger.on_gpu[gpu.uuid].values() if not e.kernel.has_agent]
        note = f"; without the agent {names(stuck)} cannot be moved" if stuck else ""
        ledger.actions.append(Cordon(gpu.uuid, f"{gpu.uuid} {_fault(gpu)}{note}"))


def leave_failing(ledger: Ledger) -> None:
    """Plan moves off critical and lost GPUs, or snapshots where there is no room elsewhere."""
    leaving = [e for e in ledger.entries.values() if e.gpu_uuid is not None and not e.moving]
    for entry in sorted(leaving, key=_urgency):
        gpu = ledger.gpu_of(entry)
        if gpu is None or not _failing(gpu) or entry.settled:
            continue
        if _moves(ledger) >= ledger.settings.max_moves:
            return
        _leave(ledger, entry, gpu)


def _moves(ledger: Ledger) -> int:
    """Count the moves that are under way or planned."""
    under_way = sum(e.kernel.target_gpu_uuid is not None for e in ledger.entries.values())
    return under_way + sum(isinstance(a, Migrate) for a in ledger.actions)


def snapshot_at_warning(ledger: Ledger) -> None:
    """Plan snapshots of the kernels on GPUs whose risk is a warning."""
    for entry in ledger.entries.values():
        gpu = ledger.gpu_of(entry)
        if gpu is not None and not _failing(gpu) and gpu.risk is RiskLevel.WARNING:
            _snapshot(ledger, entry, f"{gpu.uuid} shows signs of trouble")


def _leave(ledger: Ledger, entry: Entry, gpu: GpuView) -> None:
    kernel, name = entry.kernel, short(entry.kernel_id)
    if entry.state is LeaseState.RESERVED and entry.state_bytes == 0:
        if entry.claim_order is None:
            ledger.release(entry, f"End the reservation for {name}: {gpu.uuid} {_fault(gpu)}")
        return
    if kernel.waiting and not kernel.movable:
        # Its cell has to end first: the claim is granted in place, or refused on a lost GPU.
        return
    if not (kernel.movable if kernel.checkpointed else kernel.has_agent):
        return
    if kernel.keep_reason is not None:
        _snapshot(ledger, entry, f"{gpu.uuid} {_fault(gpu)}, and it stays: {kernel.keep_reason}")
        return
    target = _target(ledger, entry)
    if target is None:
        needs = format_bytes(entry.state_bytes)
        why = f"{gpu.uuid} {_fault(gpu)}, and no other GPU has room for its {needs} yet"
        _snapshot(ledger, entry, why)
        return
    to, size, steps = target
    because = f"because {name} ({format_bytes(size)}) must leave {gpu.uuid}, which {_fault(gpu)}"
    carry_out(ledger, steps, entry.kernel_id, because)
    when = " once its cell ends" if entry.running else ""
    reason = f"Move {name} ({format_bytes(entry.state_bytes)}) to {to.uuid}{when}: "
    ledger.migrate(entry, to, size, f"{reason}{gpu.uuid} {_fault(gpu)}")


def _target(ledger: Ledger, entry: Entry) -> tuple[GpuView, int, list[Step]] | None:
    """Return where to, the bytes to set aside there, and the steps that free them."""
    suspended = entry.state is LeaseState.SUSPENDED
    sizes = [0 if suspended else entry.held]
    slack = slack_bytes(ledger, entry)
    if entry.idle and entry.state is LeaseState.BOUND and slack > 0:
        sizes.append(entry.held - slack)
    targets = [
        g
        for g in ledger.gpus.values()
        if takes_new_leases(g)
        and g.uuid != entry.gpu_uuid
        and ledger.can_reach(entry, g)
        and g.total_bytes >= max(entry.state_bytes, min(sizes))
    ]
    for size in sizes:
        free = [g for g in targets if ledger.free[g.uuid] >= size]
        if free:
            # The emptiest one: what moves there will want to grow, or to come back.
            best = min(free, key=lambda g: _preference(ledger, g, entry))
            return best, size, []
    size = sizes[-1]
    wish = Wish(entry, size, entry.kernel.priority)
    ways = []
    for gpu in targets:
        steps = room(ledger, gpu.uuid, size - ledger.free[gpu.uuid], wish)
        if steps is not None:
            ways.append((gpu, size, steps))
    return min(ways, key=lambda w: (RISK_RANK[w[0].risk], cost_key(w[2]), w[0].index), default=None)


def _preference(ledger: Ledger, gpu: GpuView, entry: Entry) -> tuple[int, bool, int, int]:
    duty = ledger.duty_sum(gpu.uuid, entry)
    crowded = duty is not None and duty > ledger.settings.max_duty
    return (RISK_RANK[gpu.risk], crowded, -ledger.free[gpu.uuid], gpu.index)


def _snapshot(ledger: Ledger, entry: Entry, why: str) -> None:
    kernel = entry.kernel
    if not kernel.has_agent or entry.moving or not kernel.savable or entry.frozen:
        return
    last_s, interval_s = kernel.last_snapshot_s, ledger.settings.snapshot_interval_s
    if last_s is not None and ledger.now_s - last_s < interval_s:
        return
    ledger.actions.append(
        TakeSnapshot(entry.kernel_id, f"Save the state of {short(entry.kernel_id)}: {why}")
    )


def _failing(gpu: GpuView) -> bool:
    return gpu.lost or gpu.risk is RiskLevel.CRITICAL


def _fault(gpu: GpuView) -> str:
    return "no longer answers" if gpu.lost else "is likely to fail soon"


def _urgency(entry: Entry) -> tuple[bool, int, float, str]:
    # Idle kernels can go now; of those, the least recently used has waited longest unharmed, so
    # the order among equals is by priority only, then stable.
    return (entry.running, -entry.kernel.priority, entry.idle_since_s, entry.kernel_id)
