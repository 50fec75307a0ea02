"""Claims: grant, let wait or refuse, in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..model import Claim, GpuView, LeaseState, RiskLevel
from ..plans import Queue, Refuse
from ..sizes import format_bytes
from .capacity import (
    matches,
    why_impossible,
)
from .entry import Entry
from .ledger import Ledger, short
from .preempt import bursts, claim_key, switch_cost_s, waiter
from .steps import Stage, Step, Wish
from .victims import carry_out, cheapest, halted_by
from .waits import obtainable_bytes, wait_s


def in_order(ledger: Ledger, claims: Iterable[Claim]) -> list[Claim]:
    """Return claims in the order in which they are served, and mark their kernels as claimants."""
    ordered = sorted(claims, key=lambda c: claim_key(ledger, c))
    for place, claim in enumerate(ordered):
        entry = ledger.entry(claim.kernel_id)
        if entry.claim_order is None and claim.deadline_s > ledger.now_s:
            entry.claim_order = place
            ledger.claimed.add(entry.gpu_uuid)
    return ordered


def grant_claims(ledger: Ledger, ordered: list[Claim]) -> None:
    """Plan a bind, a place in the queue or a refusal for each claim."""
    waiting = list(enumerate(ordered))
    while True:
        ledger.gave_back = False
        ledger.unblock()
        desk = _Desk(ledger)
        for place, claim in waiting:
            desk.serve(place, claim)
        waiting = [(p, c) for p, c in waiting if c.claim_id in desk.queue]
        # A grant may have left part of its kernel's reservation to a claim that came before it.
        if not (waiting and ledger.gave_back):
            break
    ledger.actions.extend(desk.queue.values())


class _Desk:
    """Serves claims one after the other; remembers who waits for which GPU."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.queue: dict[str, Queue] = {}
        self.backlog: dict[str, int] = {}

    def serve(self, place: int, claim: Claim) -> None:
        ledger = self.ledger
        entry = ledger.entry(claim.kernel_id)
        need = max(claim.bytes, entry.state_bytes)
        wish = Wish(entry, need, claim.priority, place, waiter=waiter(ledger, claim))
        refusal = self._refusal(claim, entry, need)
        if refusal is not None:
            ledger.actions.append(Refuse(claim.claim_id, claim.kernel_id, refusal))
        elif claim.origin == "growth":
            self._grow(claim, wish)
        elif entry.moving:
            self._wait_for_move(claim, entry, need)
        elif entry.frozen and ledger.now_s < entry.kernel.no_resume_before_s:
            self._wait_for_resume(claim, entry)
        elif self._holds_it_already(claim, entry, need):
            pass
        else:
            here, elsewhere = self._usable(claim, entry, need)
            if not self._place(claim, wish, here, elsewhere):
                self._queue(claim, wish, [*here, *elsewhere])

    def _grow(self, claim: Claim, wish: Wish) -> None:
        """Give a running cell more where it is, or refuse: it does not wait, and holds nobody up.

        The process cannot move in its middle, so a GPU that is failing serves too.
        """
        entry = wish.entry
        gpu = self.ledger.gpu_of(entry)
        if gpu is not None and not (gpu.lost or entry.moving or entry.frozen):
            if (
                self._holds_it_already(claim, entry, wish.bytes)
                or self._take_free(claim, wish, [gpu], move=False)
                or self._make_room(claim, wish, [gpu], Stage.IDLE, move=False)
            ):
                return
            if any(e.moving and e.held for e in self.ledger.on_gpu(gpu.uuid)):
                return  # what comes free just now may be for it
        why = f"Refuse {short(claim.kernel_id)}: {format_bytes(wish.bytes)} cannot be had now"
        self.ledger.actions.append(Refuse(claim.claim_id, claim.kernel_id, why))

    # ------------------------------------------------------------------ refusals

    def _refusal(self, claim: Claim, entry: Entry, need: int) -> str | None:
        ledger, name = self.ledger, short(claim.kernel_id)
        if claim.deadline_s <= ledger.now_s:
            late_s = ledger.now_s - claim.made_s
            return f"Refuse {name}: no {format_bytes(need)} came free in {late_s:.0f} s"
        if self._holds(entry, need):
            return None
        limit = entry.kernel.limit_bytes
        if limit is not None and need > limit:
            return (
                f"Refuse {name}: it needs {format_bytes(need)}, and its process was started with "
                f"{format_bytes(limit)} at most (MPS), for as long as it lives; restart the kernel"
            )
        tied = entry.tied_to is not None and not self._may_move(entry)
        gpu = ledger.gpu_of(entry)
        if tied and gpu is not None and not entry.moving:
            if gpu.lost:
                if entry.kernel.preempted_s is not None:
                    # Its state is whole in host memory, and its cell would be lost by a refusal.
                    return None
                return (
                    f"Refuse {name}: its GPU {gpu.uuid} is lost; "
                    "run the cell again once the kernel has moved"
                )
            if need > gpu.total_bytes:
                return (
                    f"Refuse {name}: it needs {format_bytes(need)}, and the GPU that holds its "
                    f"state, {gpu.uuid}, has {format_bytes(gpu.total_bytes)}; migrate it first"
                )
            return None
        why = why_impossible(need, claim.affinity, tuple(ledger.gpus.values()))
        return None if why is None else f"Refuse {name}: {why}"

    # ------------------------------------------------------------------ grants

    def _holds(self, entry: Entry, need: int) -> bool:
        gpu = self.ledger.gpu_of(entry)
        return (
            gpu is not None
            and not gpu.lost
            and entry.state is LeaseState.BOUND
            and entry.held >= need
            and entry.suspended == 0
        )

    def _holds_it_already(self, claim: Claim, entry: Entry, need: int) -> bool:
        gpu = self.ledger.gpu_of(entry)
        if gpu is None or not self._holds(entry, need):
            return False
        if not matches(gpu, claim.affinity) and (entry.tied_to is None or self._may_move(entry)):
            return False
        name, size = short(claim.kernel_id), format_bytes(entry.held)
        reason = f"{name} holds {size} on {gpu.uuid} already and needs {format_bytes(need)}"
        self.ledger.bind(entry, gpu, entry.held, claim.claim_id, reason)
        return True

    def _may_move(self, entry: Entry) -> bool:
        kernel = entry.kernel
        if kernel.checkpointed:
            return kernel.movable
        return kernel.movable and kernel.has_agent and kernel.keep_reason is None

    def _usable(self, claim: Claim, entry: Entry, need: int) -> tuple[list[GpuView], list[GpuView]]:
        """Return the GPUs the kernel can be bound on, and those it would have to move to."""
        if entry.tied_to is None:
            return self.ledger.open_gpus.allowed(claim.affinity, need), []
        own = self.ledger.gpu_of(entry)
        if own is None or not self._may_move(entry):
            # Its state is there already, cordon or risk or not, and only the end of the waiting
            # cell lets it be moved away.
            return [] if own is None or own.lost else [own], []
        others = [
            g
            for g in self.ledger.open_gpus.allowed(claim.affinity, need)
            if g is not own and self.ledger.can_reach(entry, g)
        ]
        stays = (
            not own.lost
            and own.total_bytes >= need
            and (own.risk is not RiskLevel.CRITICAL or not others)
            and matches(own, claim.affinity)
        )
        return [own] if stays else [], others

    def _place(
        self, claim: Claim, wish: Wish, here: list[GpuView], elsewhere: list[GpuView]
    ) -> bool:
        return (
            self._take_free(claim, wish, here, move=False)
            or self._make_room(claim, wish, here, Stage.IDLE, move=False)
            or self._take_free(claim, wish, elsewhere, move=True)
            or self._make_room(claim, wish, elsewhere, Stage.IDLE, move=True)
            or self._make_room(claim, wish, here, Stage.WAITING, move=False)
            or self._make_room(claim, wish, elsewhere, Stage.WAITING, move=True)
            or self._preempt(claim, wish, here, elsewhere)
        )

    def _own_bytes(self, entry: Entry, gpu: GpuView) -> int:
        return entry.held if entry.gpu_uuid == gpu.uuid else 0

    def _deficit(self, wish: Wish, gpu: GpuView) -> int | None:
        """Return the bytes that are missing on a GPU, ``None`` if an earlier claim waits there."""
        own = self._own_bytes(wish.entry, gpu)
        if gpu.uuid in self.ledger.blocked and wish.bytes > own:
            return None
        return wish.bytes - own - self.ledger.free[gpu.uuid]

    def _take_free(self, claim: Claim, wish: Wish, gpus: list[GpuView], *, move: bool) -> bool:
        own = self.ledger.gpu_of(wish.entry)
        if own is not None and not move and any(g is own for g in gpus):
            deficit = self._deficit(wish, own)
            if deficit is not None and deficit <= 0:
                self._grant(claim, wish, own, [], move=False)
                return True
            if len(gpus) == 1:
                return False
        gpu = self._best(claim, wish, gpus)
        if gpu is None:
            return False
        self._grant(claim, wish, gpu, [], move=move)
        return True

    def _best(self, claim: Claim, wish: Wish, gpus: list[GpuView]) -> GpuView | None:
        """Return the one to take of GPUs that the kernel is not on and that have enough free."""
        if not gpus:
            return None
        ledger, entry = self.ledger, wish.entry
        if claim.affinity is None and not entry.kernel.checkpointed:
            return ledger.open_gpus.best(entry, wish.bytes)
        allowed = {g.uuid for g in gpus}
        return ledger.open_gpus.best(entry, wish.bytes, lambda g: g.uuid in allowed)

    def _make_room(
        self, claim: Claim, wish: Wish, gpus: list[GpuView], last: Stage, *, move: bool
    ) -> bool:
        if last is Stage.WAITING:
            # What the stages before can do has been tried.
            gpus = [g for g in gpus if g.uuid in self.ledger.claimed]
        way = self._cheapest(wish, gpus, last)
        if way is None:
            return False
        self._grant(claim, wish, *way, move=move)
        return True

    def _cheapest(
        self, wish: Wish, gpus: list[GpuView], last: Stage, *, safest: bool = False
    ) -> tuple[GpuView, list[Step]] | None:
        ledger, size, entry = self.ledger, wish.bytes, wish.entry
        held = {entry.gpu_uuid: entry.held}
        missing = [
            (g, size - held.get(g.uuid, 0) - ledger.free[g.uuid])
            for g in gpus
            if g.uuid not in ledger.blocked or size <= held.get(g.uuid, 0)
        ]
        return cheapest(self.ledger, wish, missing, last, safest=safest)

    def _preempt(
        self, claim: Claim, wish: Wish, here: list[GpuView], elsewhere: list[GpuView]
    ) -> bool:
        """Halt running bursts, if nothing less will do soon and the wait costs more than that."""
        if wish.waiter is None:
            return False
        by = wish.waiter
        # What the driver holds goes anywhere for nothing.
        within_reach = [*here, *elsewhere] if wish.entry.kernel.checkpointed else here
        long = [g for g in within_reach if bursts(self.ledger, g.uuid, wish.priority, by)]
        way = self._cheapest(wish, long, Stage.RUNNING, safest=True)
        if way is None:
            return False
        if self._cheapest(replace(wish, patient=True), [*here, *elsewhere], Stage.WAITING):
            # Nobody is halted for what the end of a grace period brings.
            return False
        gpu, steps = way
        cost_s = switch_cost_s(halted_by(steps))
        # A burst that has just begun elsewhere says nothing of how soon it will be over.
        waits = [self._wait_s(wish, g, guess=True) for g in long]
        gain_s = min((s for s in waits if s is not None), default=None)
        if gain_s is not None and gain_s <= cost_s:
            return False
        gain = "" if gain_s is None else f", {gain_s:.0f} s of waiting to gain"
        note = f" ({cost_s:.1f} s to lose{gain})"
        self._grant(claim, wish, gpu, steps, move=all(g is not gpu for g in here), note=note)
        return True

    def _wait_s(self, wish: Wish, gpu: GpuView, *, guess: bool = False) -> float | None:
        missing = wish.bytes - self._own_bytes(wish.entry, gpu) - self.ledger.free[gpu.uuid]
        ahead = self.backlog.get(gpu.uuid, 0)
        return wait_s(self.ledger, gpu.uuid, missing + ahead, wish, guess=guess)

    def _grant(
        self,
        claim: Claim,
        wish: Wish,
        gpu: GpuView,
        steps: list[Step],
        *,
        move: bool,
        note: str = "",
    ) -> None:
        ledger, entry = self.ledger, wish.entry
        name, size = short(claim.kernel_id), format_bytes(wish.bytes)
        because = f"because {name} claims {size}{note}"
        carry_out(ledger, steps, claim.kernel_id, because, wish.waiter)
        if move:
            source = entry.gpu_uuid
            reason = f"Move {name} from {source} to {gpu.uuid}, where there is room for {size}"
            ledger.migrate(entry, gpu, wish.bytes, reason)
            self._queued(claim, entry.kernel.restore_cost_s, f"{name} moves to {gpu.uuid} first")
            return
        back = f", {format_bytes(entry.suspended)} of it to bring back" if entry.suspended else ""
        left = ledger.free[gpu.uuid] + self._own_bytes(entry, gpu) - wish.bytes
        reason = f"Bind {size} on {gpu.uuid} to {name}{back} ({format_bytes(left)} stay free)"
        if gpu.whole:
            reason = f"Bind {gpu.uuid} to {name}, for {size}{back} (slices are not shared)"
        ledger.bind(entry, gpu, wish.bytes, claim.claim_id, reason)

    # ------------------------------------------------------------------ waiting

    def _wait_for_move(self, claim: Claim, entry: Entry, need: int) -> None:
        target = entry.target_uuid
        if target in self.ledger.gpus and need > entry.target_bytes:
            self._block(target, claim, need - entry.target_bytes)
        name = short(claim.kernel_id)
        reason = f"{name} moves to {target} first" if target else f"{name} is at another operation"
        self._queued(claim, None, reason)

    def _wait_for_resume(self, claim: Claim, entry: Entry) -> None:
        """Let others have the memory meanwhile."""
        name, left_s = short(claim.kernel_id), entry.kernel.no_resume_before_s - self.ledger.now_s
        reason = f"{name} could not be brought back; it is tried again in {left_s:.0f} s"
        self._queued(claim, left_s + entry.kernel.restore_cost_s, reason)

    def _queue(self, claim: Claim, wish: Wish, gpus: list[GpuView]) -> None:
        name, size = short(claim.kernel_id), format_bytes(wish.bytes)
        if not gpus:
            reason = f"{name} waits for {size}: each GPU for it is cordoned, lost or at risk"
            self._queued(claim, None, reason)
            return
        waits: list[float] = []
        hopeful: list[GpuView] = []
        for gpu in gpus:
            if obtainable_bytes(self.ledger, gpu.uuid, wish) < wish.bytes:
                continue
            hopeful.append(gpu)
            wait = self._wait_s(wish, gpu)
            if wait is not None:
                waits.append(wait)
        for gpu in hopeful:
            self._block(gpu.uuid, claim, wish.bytes - self._own_bytes(wish.entry, gpu))
        if not hopeful:
            reason = (
                f"{name} waits for {size}: what is pinned, of higher priority or cannot be taken "
                "back leaves too little"
            )
            self._queued(claim, None, reason)
            return
        ahead_of = {self.ledger.blocked[g.uuid].kernel_id for g in hopeful} - {claim.kernel_id}
        most = max(self._within_reach(wish, g) for g in hopeful)
        behind = f", behind {', '.join(sorted(map(short, ahead_of)))}" if ahead_of else ""
        reason = f"{name} waits for {size}: {format_bytes(most)} are free{behind}"
        restore_s = wish.entry.kernel.restore_cost_s if wish.entry.suspended else 0.0
        self._queued(claim, min(waits) + restore_s if waits else None, reason)

    def _within_reach(self, wish: Wish, gpu: GpuView) -> int:
        return max(0, self.ledger.free[gpu.uuid]) + self._own_bytes(wish.entry, gpu)

    def _block(self, uuid: str, claim: Claim, size: int) -> None:
        self.ledger.block(uuid, claim)
        self.backlog[uuid] = self.backlog.get(uuid, 0) + max(0, size)

    def _queued(self, claim: Claim, expected_wait_s: float | None, reason: str) -> None:
        self.queue[claim.claim_id] = Queue(
            claim.claim_id, claim.kernel_id, len(self.queue) + 1, expected_wait_s, reason
        )
