"""What is done about GPUs that may fail: snapshots at a warning, moves on hard evidence."""

from __future__ import annotations

import math

from ..model import GpuView, LeaseState, RiskLevel
from ..plans import Cordon, TakeSnapshot
from ..sizes import format_bytes
from .capacity import risk_rank
from .entry import Entry
from .ledger import Ledger, names, short
from .steps import Step, Wish, slack_bytes
from .victims import carry_out, cheapest


def cordon_failing(ledger: Ledger) -> None:
    """Plan a cordon for each critical or lost GPU that has none."""
    for gpu in ledger.gpus.values():
        if not _failing(gpu) or gpu.cordoned:
            continue
        stuck = [e for e in ledger.on_gpu(gpu.uuid) if not e.kernel.has_agent]
        note = f"; without the agent {names(stuck)} cannot be moved" if stuck else ""
        ledger.actions.append(Cordon(gpu.uuid, f"{gpu.uuid} {_fault(gpu)}{note}"))


def leave_failing(ledger: Ledger) -> None:
    """Plan moves off critical and lost GPUs, or snapshots where there is no room elsewhere."""
    safe = {g.uuid for g in ledger.gpus.values() if not _failing(g)}
    leaving = [
        entry
        for uuid, kernels in ledger.leased.items()
        if uuid not in safe
        for entry in map(ledger.entry_of, kernels.values())
        if not entry.moving
    ]
    in_vain: dict[int, tuple[int, int]] = {}
    for entry in sorted(leaving, key=_urgency):
        gpu = ledger.gpu_of(entry)
        if gpu is None or not _failing(gpu) or entry.settled:
            continue
        if ledger.moves >= ledger.settings.max_moves:
            return
        _leave(ledger, entry, gpu, in_vain)


def snapshot_at_warning(ledger: Ledger) -> None:
    """Plan snapshots of the kernels on GPUs whose risk is a warning."""
    doubtful = [g.uuid for g in ledger.gpus.values() if g.risk is RiskLevel.WARNING and not g.lost]
    for entry in ledger.in_order(e for u in doubtful for e in ledger.on_gpu(u)):
        _snapshot(ledger, entry, f"{entry.gpu_uuid} shows signs of trouble")


def _leave(ledger: Ledger, entry: Entry, gpu: GpuView, in_vain: dict[int, tuple[int, int]]) -> None:
    """Plan what is done about a kernel on a failing GPU.

    `in_vain` has the least room that was looked for in vain since the last booking, by priority:
    bytes to set aside, and state.
    """
    kernel, name = entry.kernel, short(entry.kernel_id)
    if entry.state is LeaseState.RESERVED and entry.state_bytes == 0:
        if entry.claim_order is None:
            ledger.release(entry, f"End the reservation for {name}: {gpu.uuid} {_fault(gpu)}")
            in_vain.clear()
        return
    if kernel.waiting and not kernel.movable:
        # Its cell has to end first: the claim is granted in place, or refused on a lost GPU.
        return
    if not (kernel.movable if kernel.checkpointed else kernel.has_agent):
        return
    if kernel.keep_reason is not None:
        _snapshot(ledger, entry, f"{gpu.uuid} {_fault(gpu)}, and it stays: {kernel.keep_reason}")
        return
    least = (_sizes(ledger, entry)[-1], entry.state_bytes)
    size, state = in_vain.get(kernel.priority, (math.inf, math.inf))
    hopeless = least[0] >= size and least[1] >= state
    target = None if hopeless else _target(ledger, entry)
    if target is None:
        needs = format_bytes(entry.state_bytes)
        why = f"{gpu.uuid} {_fault(gpu)}, and no other GPU has room for its {needs} yet"
        _snapshot(ledger, entry, why)
        if not (hopeless or kernel.checkpointed):
            in_vain[kernel.priority] = least
        return
    in_vain.clear()
    to, size, steps = target
    because = f"because {name} ({format_bytes(size)}) must leave {gpu.uuid}, which {_fault(gpu)}"
    carry_out(ledger, steps, entry.kernel_id, because)
    when = " once its cell ends" if entry.running else ""
    reason = f"Move {name} ({format_bytes(entry.state_bytes)}) to {to.uuid}{when}: "
    ledger.migrate(entry, to, size, f"{reason}{gpu.uuid} {_fault(gpu)}")


def _target(ledger: Ledger, entry: Entry) -> tuple[GpuView, int, list[Step]] | None:
    """Return where to, the bytes to set aside there, and the steps that free them."""
    sizes = _sizes(ledger, entry)
    least = max(entry.state_bytes, sizes[-1])
    targets = [
        g
        for g in ledger.open_gpus.gpus
        if g.total_bytes >= least and g.uuid != entry.gpu_uuid and ledger.can_reach(entry, g)
    ]
    for size in sizes:
        free = [g for g in targets if ledger.free[g.uuid] >= size]
        if free:
            # The emptiest one: what moves there will want to grow, or to come back.
            best = min(free, key=lambda g: _preference(ledger, g, entry))
            return best, size, []
    size = sizes[-1]
    wish = Wish(entry, size, entry.kernel.priority)
    targets.sort(key=lambda g: g.index)
    missing = ((g, size - ledger.free[g.uuid]) for g in targets)
    way = cheapest(ledger, wish, missing, safest=True)
    return None if way is None else (way[0], size, way[1])


def _sizes(ledger: Ledger, entry: Entry) -> list[int]:
    """Return the bytes to set aside on a target, the most first."""
    if entry.state is LeaseState.SUSPENDED:
        return [0]
    slack = slack_bytes(ledger, entry)
    if entry.idle and entry.state is LeaseState.BOUND and slack > 0:
        return [entry.held, entry.held - slack]
    return [entry.held]


def _preference(ledger: Ledger, gpu: GpuView, entry: Entry) -> tuple[int, bool, int, int]:
    duty = ledger.duty_sum(gpu.uuid, entry)
    crowded = duty is not None and duty > ledger.settings.max_duty
    return (risk_rank(gpu), crowded, -ledger.free[gpu.uuid], gpu.index)


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
