"""How memory can be freed on a GPU for somebody else, with the least disruption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from ..model import LeaseState
from ..sizes import format_bytes
from .ledger import Entry, Ledger, short
from .preempt import Waiter, may_be_halted, remaining_s, why_halted


class Stage(IntEnum):
    """Ways to free memory, the least disruptive first."""

    SLACK = 1
    RESERVATION = 2
    IDLE = 3
    WAITING = 4
    RUNNING = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One way to free `freed_bytes`: what is taken from `entry`, and how."""

    entry: Entry
    stage: Stage
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Wish:
    """On whose behalf memory is looked for.

    `order` is the place of the claim in the order of claims, ``None`` for what is not a claim and
    so never suspends a kernel whose cell waits. With `below`, only kernels less likely to be needed
    give, the cheapest first. `waiter` is ``None`` for what never halts a running burst. With
    `patient`, idle kernels give although their grace period is not over yet.
    """

    entry: Entry
    bytes: int
    priority: int
    order: int | None = None
    below: float | None = None
    waiter: Waiter | None = None
    patient: bool = False


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
        for step in _steps(ledger, uuid, stage, wish):
            former = chosen.get(step.entry.kernel_id)
            freed += step.freed_bytes - (former.freed_bytes if former else 0)
            chosen[step.entry.kernel_id] = step
            if freed >= deficit:
                break
    if freed < deficit:
        return list(chosen.values()) if partial else None
    return _without_redundant(ledger, list(chosen.values()), freed - deficit)


def cost_key(steps: list[Step]) -> tuple[int, float, float, float]:
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


def slack_bytes(ledger: Ledger, entry: Entry) -> int:
    """Return what an idle lease holds beyond its use and the settings' headroom."""
    return max(0, entry.held - entry.used - ledger.settings.headroom_bytes)


def _suspendable(entry: Entry, priority: int) -> bool:
    """Return whether a kernel that runs no cell may be suspended, its grace period apart."""
    kernel = entry.kernel
    return (
        entry.state is LeaseState.BOUND
        and entry.held > 0
        and not kernel.pinned
        and kernel.suspend_by is not None
        and kernel.priority <= priority
    )


def obtainable_bytes(ledger: Ledger, uuid: str, wish: Wish) -> int:
    """Return what could come free on a GPU for `wish` once the running cells are over."""
    gpu = ledger.gpus[uuid]
    kept = sum(
        e.held
        for e in ledger.on_gpu[uuid].values()
        if e is not wish.entry and (not _yields(e) or e.kernel.priority > wish.priority)
    )
    return gpu.total_bytes - gpu.foreign_bytes - ledger.arriving[uuid] - kept


def wait_s(
    ledger: Ledger, uuid: str, deficit: int, wish: Wish, *, guess: bool = False
) -> float | None:
    """Return when `deficit` bytes are expected to be free on a GPU, ``None`` if that is unknown.

    Running kernels count from their expected end on, all of them with the grace period. With
    `guess` those without one are taken to go on for as long as their bursts have lasted.
    """
    grace_s = ledger.settings.grace_period_s
    coming: list[tuple[float, int]] = []
    for entry in ledger.on_gpu[uuid].values():
        kernel = entry.kernel
        if entry is wish.entry or kernel.priority > wish.priority or not _yields(entry):
            continue
        if _is_ahead(entry, wish):
            continue
        if entry.running or (entry.settled and entry.state is LeaseState.BOUND):
            if not entry.running or (kernel.expected_end_s is None and not guess):
                continue
            if guess or kernel.expected_end_s is None:
                left_s = remaining_s(ledger, entry)
            else:
                left_s = max(0.0, kernel.expected_end_s - ledger.now_s)
            coming.append((left_s + grace_s, entry.held))
        elif not entry.settled and kernel.suspend_by is not None:
            coming.append((max(0.0, grace_s - ledger.idle_s(entry)), entry.held))
    freed = 0
    for after_s, size in sorted(coming):
        freed += size
        if freed >= deficit:
            return after_s
    return None


def _is_ahead(entry: Entry, wish: Wish) -> bool:
    order = entry.claim_order
    return order is not None and wish.order is not None and order < wish.order


def _yields(entry: Entry) -> bool:
    """Return whether an entry's memory can come free at all while its kernel lives."""
    kernel = entry.kernel
    # What an agent refuses now it may give later; without one, what cannot be taken now never can.
    if kernel.pinned or (kernel.suspend_by is None and not kernel.has_agent):
        return False
    return entry.state is not LeaseState.SUSPENDED


def _steps(ledger: Ledger, uuid: str, stage: Stage, wish: Wish) -> Iterator[Step]:
    if stage is Stage.RUNNING:
        yield from _bursts(ledger, uuid, wish)
        return
    others = [
        e
        for e in ledger.on_gpu[uuid].values()
        if e is not wish.entry and not e.settled and not e.moving and not e.running
    ]
    if wish.below is not None:
        others = [e for e in others if ledger.need_probability(e) < wish.below]
    if stage is Stage.SLACK:
        if ledger.gpus[uuid].whole:
            return
        for entry in others:
            kernel = entry.kernel
            if not (entry.state is LeaseState.BOUND and entry.idle and kernel.has_agent):
                continue
            if kernel.checkpointed:
                continue  # held half way by the driver: its memory is there, and it cannot be told
            slack = slack_bytes(ledger, entry)
            if slack > 0 and not kernel.pinned and kernel.priority <= wish.priority:
                yield Step(entry, stage, slack)
        return
    if stage is Stage.RESERVATION:
        eligible = [e for e in others if e.idle and _reservation_yields(ledger, e, wish)]
    elif stage is Stage.IDLE:
        eligible = [e for e in others if e.idle and _suspendable(e, wish.priority)]
        eligible = [e for e in eligible if wish.patient or not ledger.in_grace(e)]
    else:
        eligible = [e for e in others if _waits_behind(ledger, e, wish)]
    for entry in sorted(eligible, key=lambda e: _rank(ledger, e, stage, wish)):
        yield Step(entry, stage, entry.held)


def _bursts(ledger: Ledger, uuid: str, wish: Wish) -> Iterator[Step]:
    if wish.waiter is None:
        return
    halted = [
        e
        for e in ledger.on_gpu[uuid].values()
        if e is not wish.entry and may_be_halted(ledger, e, wish.priority, wish.waiter)
    ]
    for entry in sorted(halted, key=lambda e: (-e.kernel.attained_s, e.kernel_id)):
        yield Step(entry, Stage.RUNNING, entry.held)


def _rank(
    ledger: Ledger, entry: Entry, stage: Stage, wish: Wish
) -> tuple[float, float, float, str]:
    """Rank by least recent use; the last in the queue, or the cheapest, before that."""
    first = 0.0
    if stage is Stage.WAITING and entry.claim_order is not None:
        first = -float(entry.claim_order)
    elif wish.below is not None:
        first = ledger.need_probability(entry) * entry.kernel.restore_cost_s
    return (first, entry.idle_since_s, entry.kernel.restore_cost_s, entry.kernel_id)


def _reservation_yields(ledger: Ledger, entry: Entry, wish: Wish) -> bool:
    kernel = entry.kernel
    if entry.state is not LeaseState.RESERVED or entry.held == 0 or kernel.pinned:
        return False
    if kernel.priority > wish.priority or (entry.state_bytes > 0 and kernel.suspend_by is None):
        return False
    # A cell that waits is a certainty; a reservation in its grace period yields to it only where
    # it is worth less for certain.
    return (
        wish.patient
        or not ledger.in_grace(entry)
        or kernel.priority < wish.priority
        or ledger.need_probability(entry) < ledger.settings.prebind_threshold
    )


def _waits_behind(ledger: Ledger, entry: Entry, wish: Wish) -> bool:
    if wish.order is None or entry.claim_order is None or entry.claim_order <= wish.order:
        return False
    if ledger.in_grace(entry) and not wish.patient:
        return False
    if entry.state is LeaseState.RESERVED:
        return entry.held > 0 and entry.kernel.priority <= wish.priority
    return _suspendable(entry, wish.priority)


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
