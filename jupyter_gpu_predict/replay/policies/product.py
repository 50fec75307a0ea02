"""The product's own policy: `decide` on views of the simulated cluster."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

from ...control.bursts import GAP_S, Burst
from ...core.allocation.policy import decide
from ...core.allocation.preempt import service_s
from ...core.model import (
    Claim,
    ClusterView,
    GpuView,
    KernelView,
    Lease,
    LeaseState,
    PolicySettings,
    Rung,
)
from ...core.plans import Bind, Migrate, Plan, Prebind, Reclaim, Refuse, Release, Resize
from ...errors import ConflictError
from ..engine import COMES, HALTED, OVER, RUNS, WAITS, Book, Simulation

BEGIN_S = 1e6
"""What the product's clock shows when a replay begins; a kernel is old by then."""

LOOK_AGAIN_S = 60.0
"""How long a claim waits at most before it is looked at again, should nothing have happened; the
live loop turns every second."""

_NOT_PROVEN = "preemption is off"
_WANT = (WAITS, COMES, RUNS, HALTED)


class Kernel:
    """What the product knows of one notebook's kernel."""

    __slots__ = (
        "arrives_s", "book", "burst", "checkpointed", "claim", "kernel_id", "lease", "stale",
        "target", "view",
    )  # fmt: skip

    def __init__(self, book: Book) -> None:
        self.book = book
        self.kernel_id = f"{book.index:04d}"
        self.lease: Lease | None = None
        self.claim: Claim | None = None
        self.burst = Burst()
        self.checkpointed = False
        self.target: str | None = None
        """The GPU it moves to, until `arrives_s`."""
        self.arrives_s = math.inf
        self.view: KernelView | None = None
        self.stale = True
        """Something changed since `view` was made."""


class Product:
    """`core.allocation.policy.decide`, as it is.

    It is asked when something has happened and when time alone may change its answer. What it knows
    of duties is the drawn duty times `duty_factor`; with `preempt` the driver's checkpoint counts
    as proven. Each plan is carried out at once; its switches take their time.
    """

    free = False

    def __init__(
        self,
        settings: PolicySettings | None = None,
        *,
        preempt: bool = False,
        duty_factor: float = 1.0,
        name: str | None = None,
    ) -> None:
        base = settings or PolicySettings(preempt=preempt)
        self.settings = replace(base, autosave=False)
        self.duty_factor = duty_factor
        self.name = name or f"product{', preempting' if base.preempt else ''}"
        self.plans = 0

    # ------------------------------------------------------------------ what happens

    def begin(self, sim: Simulation) -> None:
        """Take note of a simulation that begins."""
        self.sim = sim
        self._kernels = [Kernel(b) for b in sim.books]
        self._by_id = {k.kernel_id: k for k in self._kernels}
        self._claims: dict[str, Kernel] = {}
        total = sim.machine.gpu_bytes
        self._uuids = [f"GPU-{g.index}" for g in sim.gpus]
        self._gpus = tuple(
            GpuView(uuid, i, "simulated GPU", total) for i, uuid in enumerate(self._uuids)
        )
        self._place = {uuid: i for i, uuid in enumerate(self._uuids)}
        self._epoch = 0
        self._changed = False
        self._moving = 0
        self._again_s = math.inf

    def asked(self, sim: Simulation, book: Book) -> None:
        """Start a kernel that holds what it needs, or claim for it as its gate does."""
        kernel = self._kernels[book.index]
        self._changed = kernel.stale = True
        if book.gpu is not None and kernel.target is None:
            self._run(kernel)
        else:
            self._claim(kernel, "cell")

    def ended(self, sim: Simulation, book: Book) -> None:
        """Take note of a cell that has run; the kernel of the last one is shut down."""
        kernel = self._kernels[book.index]
        kernel.burst.cell_ended(book.seen_s, sim.now_s)
        self._changed = kernel.stale = True
        if book.phase == OVER:
            sim.drop(book)
            kernel.lease = None
            del self._by_id[kernel.kernel_id]

    def decide(self, sim: Simulation) -> None:
        """Ask the product, if its answer may be another one than before, and do as it says."""
        if self._moving:
            self._arrive()
        if sim.now_s >= self._again_s:
            self._changed = True
        while self._changed and (self._claims or sim.machine.shared):
            self._changed = False
            view = self._view()
            plan = decide(view)
            sim.outcome.decisions += 1
            self._changed = self._carry_out(plan)
        self._again_s = sim.alarm_s = self._next_s() - BEGIN_S

    # ------------------------------------------------------------------ the picture

    def _view(self) -> ClusterView:
        now = self.sim.now_s + BEGIN_S
        return ClusterView(
            now,
            self._gpus,
            tuple(self._kernel_view(k, now) for k in self._by_id.values()),
            tuple(k.claim for k in self._claims.values() if k.claim is not None),
            self.settings,
        )

    def _kernel_view(self, kernel: Kernel, now: float) -> KernelView:
        book = kernel.book
        ageing = self.settings.preempt and (book.phase in _WANT or kernel.burst.had_s > 0.0)
        if kernel.view is not None and not kernel.stale and not ageing:
            return kernel.view
        resident, coming = book.gpu is not None, book.away_s > self.sim.now_s
        preempt = self.settings.preempt
        kernel.stale = coming
        kernel.view = KernelView(
            kernel_id=kernel.kernel_id,
            lease=kernel.lease,
            used_bytes=book.bytes if resident else 0,
            suspended_bytes=book.bytes if book.has_state and not resident else 0,
            busy=book.phase in _WANT,
            waiting=book.phase == WAITS,
            last_used_s=max(0.0, book.ended_s + BEGIN_S),
            restore_cost_s=self.sim.costs.restore_s,
            migrating=kernel.target is not None or (coming and resident and book.phase != COMES),
            duty=book.duty * self.duty_factor,
            movable=True,
            target_gpu_uuid=kernel.target,
            target_bytes=book.bytes if kernel.target is not None else 0,
            age_s=now - BEGIN_S + 600.0,
            suspend_by=Rung.DRIVER_CHECKPOINT if preempt else Rung.IN_PLACE,
            why_not_preempt=self._why_not_preempt(book),
            attained_s=kernel.burst.attained_s(self.sim.now_s) if preempt else 0.0,
            switched_s=max(0.0, book.switched_s + BEGIN_S),
            checkpointed=kernel.checkpointed,
            preempted_s=book.switched_s + BEGIN_S if book.phase == HALTED else None,
        )
        return kernel.view

    def _why_not_preempt(self, book: Book) -> str | None:
        if not self.settings.preempt:
            return _NOT_PROVEN
        return "its state is on its way" if book.phase == COMES else None

    def _claim(self, kernel: Kernel, origin: str) -> None:
        self._epoch += 1
        kernel.claim = Claim(
            f"c{self._epoch}",
            kernel.kernel_id,
            kernel.book.bytes,
            self.sim.now_s + BEGIN_S,
            math.inf,
            origin=origin,
        )
        self._claims[kernel.claim.claim_id] = kernel

    # ------------------------------------------------------------------ what is done

    def _carry_out(self, plan: Plan) -> bool:
        """Do what a plan says; return whether that calls for another at once."""
        again = False
        for action in plan.actions:
            match action:
                case Bind():
                    self._bind(action)
                case Reclaim():
                    self._reclaim(action)
                    again |= action.mid_cell
                case Migrate():
                    again |= self._migrate(action)
                case Prebind():
                    self._prebind(action)
                case Resize():
                    kernel = self._by_id[action.kernel_id]
                    if kernel.lease is not None:
                        kernel.lease = replace(kernel.lease, bytes=action.bytes)
                        kernel.stale = True
                case Release():
                    self._by_id[action.kernel_id].lease = None
                case Refuse():
                    raise ConflictError(f"a claim was refused in a replay: {action.reason}")
        return again

    def _lease(self, kernel: Kernel, uuid: str, size: int, state: LeaseState) -> None:
        self._epoch += 1
        now = self.sim.now_s + BEGIN_S
        kernel.lease = Lease(kernel.kernel_id, uuid, size, state, self._epoch, now)
        kernel.stale = True

    def _run(self, kernel: Kernel) -> None:
        """Let a cell go on whose state is there, or on its way."""
        self.sim.start(kernel.book)
        kernel.burst.cell_started(max(self.sim.now_s, kernel.book.away_s))
        kernel.stale = True

    def _bind(self, action: Bind) -> None:
        sim, kernel = self.sim, self._claims.pop(action.claim_id)
        book = kernel.book
        was_halted = book.phase == HALTED
        kernel.claim = None
        self._lease(kernel, action.gpu_uuid, action.bytes, LeaseState.BOUND)
        kernel.checkpointed = False
        if book.gpu is not None:
            self._run(kernel)
            return
        sim.give(book, sim.gpus[self._place[action.gpu_uuid]])
        if was_halted:
            kernel.burst.go_on(book.away_s)
        else:
            kernel.burst.cell_started(book.away_s)

    def _prebind(self, action: Prebind) -> None:
        kernel = self._by_id[action.kernel_id]
        if kernel.book.gpu is None and kernel.book.has_state:
            self._lease(kernel, action.gpu_uuid, action.bytes, LeaseState.BOUND)
            kernel.checkpointed = False
            gpu = self.sim.gpus[self._place[action.gpu_uuid]]
            self.sim.give(kernel.book, gpu, ahead=True)

    def _reclaim(self, action: Reclaim) -> None:
        sim, kernel = self.sim, self._by_id[action.kernel_id]
        book, lease = kernel.book, kernel.lease
        if lease is None:
            raise ConflictError(f"a kernel without a lease was to be suspended: {action.reason}")
        if action.mid_cell:
            kernel.burst.halt(sim.now_s)
            sim.halt(book)
            self._claim(kernel, "preempted")
        else:
            sim.take(book)
        self._lease(kernel, lease.gpu_uuid, lease.bytes, LeaseState.SUSPENDED)
        kernel.checkpointed = action.rung is Rung.DRIVER_CHECKPOINT

    def _migrate(self, action: Migrate) -> bool:
        """Begin a move; return whether it is over already."""
        sim, kernel = self.sim, self._by_id[action.kernel_id]
        sim.outcome.moves += 1
        kernel.target, kernel.stale = action.target_gpu_uuid, True
        if kernel.checkpointed:
            kernel.arrives_s = sim.now_s
            self._moving += 1
            self._arrive()
            return True
        if kernel.book.gpu is not None:
            sim.take(kernel.book)
            # The move's own time holds the way out, and nobody pushed it off its GPU.
            sim.outcome.evictions -= 1
            sim.outcome.switch_s -= sim.costs.suspend_s
        kernel.arrives_s = sim.now_s + sim.costs.move_s
        sim.outcome.switch_s += sim.costs.move_s
        self._moving += 1
        sim.wake(kernel.arrives_s)
        return False

    def _arrive(self) -> None:
        """Book those kernels on their targets that have got there."""
        for kernel in self._by_id.values():
            if kernel.target is not None and kernel.arrives_s <= self.sim.now_s:
                lease = kernel.lease
                size = kernel.book.bytes if lease is None else lease.bytes
                self._lease(kernel, kernel.target, size, LeaseState.SUSPENDED)
                kernel.target, kernel.arrives_s = None, math.inf
                self._moving -= 1
                self._changed = True

    # ------------------------------------------------------------------ when to look again

    def _next_s(self) -> float:
        """Return when time alone may change the product's answer."""
        if not self._claims:
            return math.inf
        now, settings = self.sim.now_s + BEGIN_S, self.settings
        at = [now + LOOK_AGAIN_S]
        views = [k.view for k in self._by_id.values() if k.view is not None]
        at += [
            max(v.last_used_s, v.lease.since_s) + settings.grace_period_s
            for v in views
            if v.lease is not None and v.used_bytes and not v.busy
        ]
        if settings.preempt:
            at += self._preempt_times(views)
        return min((t for t in at if t > now), default=math.inf)

    def _preempt_times(self, views: list[KernelView]) -> Iterator[float]:
        """Yield when a running burst falls due to make way, and when a claim grows old."""
        settings, now = self.settings, self.sim.now_s + BEGIN_S
        # From twice a restore on, a burst is expected to last for longer than halting one costs.
        enough = {settings.preempt_min_s, 2 * self.sim.costs.restore_s}
        for kernel in self._claims.values():
            if kernel.claim is not None and kernel.view is not None:
                yield kernel.claim.made_s + settings.preempt_age_s
                enough.add(settings.preempt_factor * service_s(kernel.view, settings))
                yield kernel.burst.ended_s + GAP_S + BEGIN_S  # what it had had does not count then
        ordered = sorted(enough)
        for view in views:
            if view.lease is None or not view.used_bytes or not view.busy:
                continue
            yield max(view.switched_s, view.lease.since_s) + settings.preempt_min_s
            place = bisect_right(ordered, view.attained_s)
            if place < len(ordered):
                yield now + ordered[place] - view.attained_s
