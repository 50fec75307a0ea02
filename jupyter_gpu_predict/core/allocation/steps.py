"""What could be taken from the kernels on a GPU for somebody else, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ..model import LeaseState
from .entry import Entry
from .ledger import Ledger
from .preempt import Waiter, bursts


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


Offer = tuple[list[Step], list[Step], list[Step]]
"""Steps of the stages up to `Stage.IDLE`, each in the order in which they are taken."""


def steps_of(ledger: Ledger, uuid: str, stage: Stage, wish: Wish) -> list[Step]:
    """Return the steps of a stage on a GPU, in the order in which they are taken."""
    if stage is Stage.RUNNING:
        if wish.waiter is None:
            return []
        halted = bursts(ledger, uuid, wish.priority, wish.waiter)
        return [Step(e, stage, e.held) for e in halted if e is not wish.entry]
    if stage is Stage.WAITING:
        return _waiting(ledger, uuid, wish)
    found = offer(ledger, uuid, wish.priority, patient=wish.patient)[stage - 1]
    if wish.entry.gpu_uuid == uuid:
        found = [s for s in found if s.entry is not wish.entry]
    if wish.below is None or not found:
        return found
    calm = found if stage is Stage.SLACK else [s for s in found if ledger.is_calm(s.entry)]
    likely = ((ledger.need_probability(s.entry), s) for s in calm)
    cheap = [(p * s.entry.kernel.restore_cost_s, s) for p, s in likely if p < wish.below]
    if stage is not Stage.SLACK:
        cheap.sort(key=lambda c: c[0])
    return [s for _, s in cheap]


def offer(ledger: Ledger, uuid: str, priority: int, *, patient: bool = False) -> Offer:
    """Return what a GPU's kernels give up to claims of a priority without being in their way."""
    memo, key = ledger.memo[uuid], ("offer", priority, patient)
    found: Offer | None = memo.get(key)
    if found is None:
        found = memo[key] = _offer(ledger, uuid, priority, patient=patient)
    return found


def _offer(ledger: Ledger, uuid: str, priority: int, *, patient: bool) -> Offer:
    slack: list[Step] = []
    reserved: list[Entry] = []
    idle: list[Entry] = []
    whole, spare = ledger.gpus[uuid].whole, ledger.settings.headroom_bytes
    for entry in ledger.on_gpu(uuid):
        if entry.settled or entry.moving or entry.held == 0:
            continue
        kernel = entry.kernel
        if kernel.busy or kernel.waiting or entry.claim_order is not None:
            continue
        if kernel.pinned or kernel.priority > priority:
            continue
        if entry.state is LeaseState.BOUND:
            # What is held half way by the driver cannot be told: its memory is there.
            if kernel.has_agent and not kernel.checkpointed and not whole:
                size = entry.held - entry.state_bytes + entry.suspended - spare
                if size > 0:
                    slack.append(Step(entry, Stage.SLACK, size))
            if kernel.suspend_by is not None and (patient or not ledger.in_grace(entry)):
                idle.append(entry)
        elif entry.state is LeaseState.RESERVED and _reservation_yields(
            ledger, entry, priority, patient=patient
        ):
            reserved.append(entry)
    return (
        slack,
        [Step(e, Stage.RESERVATION, e.held) for e in sorted(reserved, key=_latest_use)],
        [Step(e, Stage.IDLE, e.held) for e in sorted(idle, key=_latest_use)],
    )


def _waiting(ledger: Ledger, uuid: str, wish: Wish) -> list[Step]:
    """Return the steps that suspend kernels whose cells wait behind the claim."""
    memo = ledger.memo[uuid]
    claiming: list[Entry] | None = memo.get("claiming")
    if claiming is None:
        here = ledger.on_gpu(uuid)
        claiming = memo["claiming"] = [e for e in here if e.claim_order is not None]
    if not claiming:
        return []
    behind = [e for e in claiming if e is not wish.entry and _waits_behind(ledger, e, wish)]
    behind.sort(key=lambda e: (-(e.claim_order or 0), *_latest_use(e)))
    return [Step(e, Stage.WAITING, e.held) for e in behind]


def _waits_behind(ledger: Ledger, entry: Entry, wish: Wish) -> bool:
    kernel = entry.kernel
    if entry.settled or entry.moving or entry.running or entry.held == 0:
        return False
    if wish.order is None or entry.claim_order is None or entry.claim_order <= wish.order:
        return False
    if kernel.priority > wish.priority or (ledger.in_grace(entry) and not wish.patient):
        return False
    if entry.state is LeaseState.BOUND:
        return not kernel.pinned and kernel.suspend_by is not None
    return entry.state is LeaseState.RESERVED


def _latest_use(entry: Entry) -> tuple[float, float, str]:
    return (entry.idle_since_s, entry.kernel.restore_cost_s, entry.kernel_id)


def _reservation_yields(ledger: Ledger, entry: Entry, priority: int, *, patient: bool) -> bool:
    kernel = entry.kernel
    if entry.state_bytes > 0 and kernel.suspend_by is None:
        return False
    # A cell that waits is a certainty; a reservation in its grace period yields to it only where
    # it is worth less for certain.
    return (
        patient
        or not ledger.in_grace(entry)
        or kernel.priority < priority
        or ledger.need_probability(entry) < ledger.settings.prebind_threshold
    )


def slack_bytes(ledger: Ledger, entry: Entry) -> int:
    """Return what an idle lease holds beyond its use and the settings' headroom."""
    return max(0, entry.held - entry.used - ledger.settings.headroom_bytes)
