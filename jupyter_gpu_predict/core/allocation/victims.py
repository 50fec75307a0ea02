"""How memory can be freed on a GPU for somebody else, with the least disruption."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from heapq import heapify, heappop
from itertools import accumulate

from ..model import GpuView, LeaseState
from ..sizes import format_bytes
from .capacity import risk_rank
from .entry import Entry
from .ledger import Ledger, short
from .preempt import Waiter, bursts, why_halted
from .steps import Stage, Step, Wish, slack_bytes, steps_of

Cost = tuple[int, int, float, float]
"""How disruptive steps are, see `cost_key`."""

_Reach = tuple[list[int], list[Cost]]

_CLOSE_S = 1e-3
"""What times are not told apart by, so that what is taken to cost least never costs less."""

_NOTHING: Cost = (0, 0, 0.0, 0.0)


def room(
    ledger: Ledger,
    uuid: str,
    deficit: int,
    wish: Wish,
    *,
    last: Stage = Stage.IDLE,
    partial: bool = False,
) -> list[Step] | None:
    """Return steps that free `deficit` bytes of a GPU, ``None`` if none up to stage `last` do.

    Each step is needed: without any of them too little is freed. With `partial`, steps that free
    less than that are returned too.
    """
    chosen: dict[str, Step] = {}
    freed = 0
    for stage in Stage:
        if stage > last or freed >= deficit:
            break
        for step in steps_of(ledger, uuid, stage, wish):
            former = chosen.get(step.entry.kernel_id)
            freed += step.freed_bytes - (former.freed_bytes if former else 0)
            chosen[step.entry.kernel_id] = step
            if freed >= deficit:
                break
    if freed < deficit:
        return list(chosen.values()) if partial else None
    return _without_redundant(ledger, list(chosen.values()), freed - deficit)


def cheapest(
    ledger: Ledger,
    wish: Wish,
    places: Iterable[tuple[GpuView, int]],
    last: Stage = Stage.IDLE,
    *,
    safest: bool = False,
) -> tuple[GpuView, list[Step]] | None:
    """Return the GPU on which a deficit is freed with the least disruption, and the steps.

    `places` are GPUs and what is missing on each. Between equals the GPU of the lowest risk is
    taken, with `safest` that comes first; then the first one. GPUs are tried in the order of the
    least that they can cost, and no more of them than can be the cheapest.
    """

    def key(gpu: GpuView, cost: Cost) -> tuple[float, ...]:
        risk = risk_rank(gpu)
        return (risk, *cost) if safest else (cost[0], risk, *cost[1:])

    heap = [
        (key(gpu, least), place, gpu, deficit)
        for place, (gpu, deficit) in enumerate(places)
        if (least := _least_cost(ledger, gpu.uuid, deficit, wish, last)) is not None
    ]
    heapify(heap)
    best: tuple[tuple[float, ...], int, GpuView, list[Step]] | None = None
    while heap:
        bound, place, gpu, deficit = heappop(heap)
        if best is not None and (bound, place) > best[:2]:
            break
        steps = room(ledger, gpu.uuid, deficit, wish, last=last)
        if steps is not None:
            cost = key(gpu, cost_key(steps))
            if best is None or (cost, place) < best[:2]:
                best = cost, place, gpu, steps
    return None if best is None else best[2:]


def _least_cost(ledger: Ledger, uuid: str, deficit: int, wish: Wish, last: Stage) -> Cost | None:
    """Return a cost that no way to free `deficit` bytes is below, ``None`` if there is none."""
    if deficit <= 0:
        return _NOTHING
    freed, costs = _reach(ledger, uuid, wish.priority, patient=wish.patient)
    if deficit <= freed[-1]:
        return costs[bisect_left(freed, deficit)]
    if last is Stage.IDLE:
        return None
    waiting = steps_of(ledger, uuid, Stage.WAITING, wish)
    missing = deficit - freed[-1] - sum(s.freed_bytes for s in waiting)
    if missing <= 0:
        return (Stage.WAITING, 0, 0.0, 0.0)
    if last is not Stage.RUNNING or wish.waiter is None:
        return None
    running = bursts(ledger, uuid, wish.priority, wish.waiter)
    sizes = accumulate(sorted((e.held for e in running), reverse=True))
    halted = next((n for n, size in enumerate(sizes, 1) if size >= missing), None)
    if halted is None:
        return None
    return (Stage.RUNNING, halted, -running[0].kernel.attained_s, 0.0)


def _reach(
    ledger: Ledger, uuid: str, priority: int, *, patient: bool
) -> tuple[list[int], list[Cost]]:
    """Return how much stages up to `Stage.IDLE` free at most, step by step, and the least cost.

    The cost of an idle kernel is its latest use. Worked out without entries: most of these kernels
    are not looked at again.
    """
    memo, key = ledger.memo[uuid], ("reach", priority, patient)
    found: _Reach | None = memo.get(key)
    if found is not None:
        return found
    grace_s = -math.inf if patient else ledger.settings.grace_period_s - _CLOSE_S
    before_s = ledger.now_s - grace_s
    shared, total = not ledger.gpus[uuid].whole, 0
    idle: list[tuple[float, int]] = []
    for kernel_id, kernel in ledger.leased[uuid].items():
        lease = kernel.lease
        if kernel.busy or kernel.pinned or kernel.priority > priority:
            continue
        entry = ledger.known(kernel_id)
        if entry is not None:
            if entry.settled or entry.claim_order is not None:
                continue
            state, held = entry.state, entry.held
        elif lease is not None:
            state = lease.state
            held = lease.bytes if lease.bytes > kernel.used_bytes else kernel.used_bytes
        if state is LeaseState.RESERVED:
            total += held
        elif state is LeaseState.BOUND:
            slack = 0
            if shared and kernel.has_agent and held > kernel.used_bytes:
                slack = held - kernel.used_bytes
                total += slack
            since_s = kernel.last_used_s
            if lease is not None and lease.since_s > since_s:
                since_s = lease.since_s
            if kernel.suspend_by is not None and since_s <= before_s:
                idle.append((since_s, held - slack))
    idle.sort()
    freed, costs = [total], [(int(Stage.SLACK), 0, 0.0, 0.0)]
    for since_s, size in idle:
        total += size
        freed.append(total)
        costs.append((int(Stage.IDLE), 0, since_s, 0.0))
    memo[key] = freed, costs
    return freed, costs


def cost_key(steps: list[Step]) -> Cost:
    """Return how disruptive steps are.

    The worst stage, the number of bursts halted, the latest use of an idle kernel or else the least
    that a halted burst has had, the time to restore.
    """
    taken = [s for s in steps if s.stage >= Stage.IDLE]
    halted = halted_by(steps)
    return (
        max((s.stage for s in steps), default=0),
        len(halted),
        -min(e.kernel.attained_s for e in halted)
        if halted
        else max((s.entry.idle_since_s for s in taken), default=0.0),
        sum(s.entry.kernel.restore_cost_s for s in taken),
    )


def halted_by(steps: list[Step]) -> list[Entry]:
    """Return the kernels whose running bursts steps suspend."""
    return [s.entry for s in steps if s.stage is Stage.RUNNING]


def carry_out(
    ledger: Ledger,
    steps: list[Step],
    for_kernel_id: str | None,
    because: str,
    waiter: Waiter | None = None,
) -> None:
    """Plan `steps`; `because` ends each reason. Steps that halt a burst do so for `waiter`."""
    for step in sorted(steps, key=lambda s: s.stage):
        entry = step.entry
        size, name = format_bytes(step.freed_bytes), short(entry.kernel_id)
        if step.stage is Stage.SLACK:
            keep = entry.held - step.freed_bytes
            unused = f"Take {size} that {name} holds and does not use"
            ledger.resize(entry, keep, f"{unused} (it keeps {format_bytes(keep)}) {because}")
        elif entry.state is LeaseState.RESERVED and entry.state_bytes == 0:
            ledger.release(
                entry,
                f"End the reservation of {size} for {name} "
                f"({_likelihood(ledger, entry)}) {because}",
            )
        elif step.stage is Stage.WAITING:
            ledger.reclaim(
                entry,
                for_kernel_id,
                f"Take {size} back from {name} (its cell waits behind in the queue) {because}",
            )
        elif step.stage is Stage.RUNNING and waiter is not None and for_kernel_id is not None:
            why = why_halted(entry, for_kernel_id, waiter)
            reason = f"Halt {name} and take {size} back ({why}) {because}"
            ledger.reclaim(entry, for_kernel_id, reason, mid_cell=True)
        else:
            idle = f"idle {ledger.idle_s(entry):.0f} s, {_likelihood(ledger, entry)}"
            ledger.reclaim(entry, for_kernel_id, f"Take {size} back from {name} ({idle}) {because}")


def _without_redundant(ledger: Ledger, steps: list[Step], spare: int) -> list[Step]:
    def disruption(step: Step) -> tuple[int, float]:
        if step.stage is Stage.RUNNING:
            return (-step.stage, step.entry.kernel.attained_s)
        return (-step.stage, -step.entry.idle_since_s)

    kept: list[Step] = []
    for step in sorted(steps, key=disruption):
        if step.freed_bytes <= spare:
            spare -= step.freed_bytes
            continue
        gpu = ledger.gpu_of(step.entry)
        if step.stage is Stage.IDLE and not (gpu is not None and gpu.whole):
            slack = slack_bytes(ledger, step.entry)
            if slack > 0 and step.freed_bytes - slack <= spare:
                spare -= step.freed_bytes - slack
                kept.append(Step(step.entry, Stage.SLACK, slack))
                continue
        kept.append(step)
    return kept


def _likelihood(ledger: Ledger, entry: Entry) -> str:
    horizon_s = ledger.settings.prebind_horizon_s
    return f"P(needed in {horizon_s:g} s) = {ledger.need_probability(entry):.2f}"
