"""Bursts of work on a small cluster under the policy: time passes, switches take time.

Closed loop, no I/O: each user thinks, runs a burst, thinks again. What a plan says is carried out
by `Cluster`, which watches the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from allocation_cluster import Cluster

from jupyter_gpu_predict.core.model import (
    MIB,
    Claim,
    GpuView,
    KernelView,
    PolicySettings,
)
from jupyter_gpu_predict.core.plans import Bind, Migrate, Plan, Reclaim

GAP_S = 60.0
"""Runs of cells with gaps below this are one burst."""


@dataclass(frozen=True, slots=True)
class User:
    """A notebook: `bursts` are (seconds of thought before it, seconds of work), one cell each."""

    kernel_id: str
    mib: int
    bursts: Sequence[tuple[float, float]]
    pinned: bool = False
    why_not_preempt: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """A burst that is over: when it was asked for, when it ended, and the work it was."""

    kernel_id: str
    asked_s: float
    done_s: float
    work_s: float

    @property
    def delay_s(self) -> float:
        """Seconds that it ended later than on a GPU of its own."""
        return self.done_s - self.asked_s - self.work_s


@dataclass(slots=True)
class Run:
    """Where a user is in their bursts."""

    user: User
    number: int = 0
    phase: str = "think"
    next_s: float = math.inf
    asked_s: float = 0.0
    left_s: float = 0.0
    had_s: float = 0.0
    switches: list[tuple[float, str]] = field(default_factory=list)


class BurstCluster(Cluster):
    """A cluster whose users work; each way out or back of a kernel's state takes `switch_s`."""

    def __init__(
        self,
        gpus: Iterable[GpuView],
        users: Iterable[User],
        settings: PolicySettings | None = None,
        *,
        switch_s: float = 2.0,
        movable: bool = True,
        watched: bool = True,
    ) -> None:
        super().__init__(gpus, settings, watched=watched)
        self.switch_s = switch_s
        self.runs = {u.kernel_id: Run(u) for u in users}
        self.done: list[Done] = []
        self.waits: list[tuple[float, str]] = []
        """Seconds from a claim to its grant, and the kernel."""
        self.moves: dict[str, float] = {}
        self.switched_s = 0.0
        for run in self.runs.values():
            user = run.user
            self.kernels[user.kernel_id] = KernelView(
                user.kernel_id,
                None,
                pinned=user.pinned,
                priority=user.priority,
                why_not_preempt=user.why_not_preempt,
                restore_cost_s=switch_s,
                movable=movable,
            )
            self._think(run)

    def work(self, until_s: float = math.inf) -> None:
        """Let time pass until everybody is done, or until `until_s`."""
        while any(r.phase != "over" for r in self.runs.values()):
            self._elapse(self._next_s())
            if self.now_s >= until_s:
                return
            self._happen()
            self.decide_and_act()

    def decide_and_act(self) -> Plan:
        """Decide once and carry the plan out, with the time it takes."""
        waiting = dict(self.claims)
        away = {k.kernel_id for k in self.kernels.values() if k.suspended_bytes > 0}
        held = {k.kernel_id for k in self.kernels.values() if k.checkpointed}
        plan = self.step()
        taken_for = {a.for_kernel_id for a in plan.actions if isinstance(a, Reclaim)}
        for action in plan.actions:
            match action:
                case Reclaim(kernel_id, _, _, _, mid_cell):
                    self.switched_s += self.switch_s
                    if mid_cell:
                        self._stop(self.runs[kernel_id])
                case Bind(kernel_id, _, _, claim_id):
                    run, one = self.runs[kernel_id], waiting[claim_id]
                    delay_s = self.switch_s * ((kernel_id in taken_for) + (kernel_id in away))
                    self._start(run, delay_s, self.now_s - one.made_s)
                case Migrate(kernel_id):
                    # What the driver holds comes back elsewhere as quickly as where it was.
                    move_s = 0.0 if kernel_id in held else 2 * self.switch_s
                    self.moves[kernel_id] = self.now_s + move_s
                    self.switched_s += move_s
        return plan

    # ------------------------------------------------------------------ time

    def _next_s(self) -> float:
        soonest = min((r.next_s for r in self.runs.values()), default=math.inf)
        soonest = min(soonest, *self.moves.values(), math.inf)
        if self.claims:
            # Who has waited long can bear to be looked at less often.
            youngest_s = self.now_s - max(c.made_s for c in self.claims.values())
            soonest = min(soonest, self.now_s + min(30.0, max(1.0, youngest_s / 10)))
        assert soonest < math.inf, "nobody can go on"
        return max(self.now_s, soonest)

    def _elapse(self, to_s: float) -> None:
        """Let time pass; the service that running bursts have had by then counts."""
        self.now_s = to_s
        for kernel_id, run in self.runs.items():
            if run.phase == "run":
                had_s = run.had_s + self._work_s(run) - max(0.0, run.next_s - to_s)
                # On its way back it has not had more yet.
                if had_s > self.kernels[kernel_id].attained_s:
                    self.change(kernel_id, attained_s=had_s)

    def _happen(self) -> None:
        for kernel_id, at_s in list(self.moves.items()):
            if at_s <= self.now_s:
                del self.moves[kernel_id]
                self.end_migration(kernel_id, commit=True)
        for run in self.runs.values():
            if run.next_s > self.now_s:
                continue
            if run.phase == "think":
                self._ask(run)
            elif run.phase == "run":
                self._end(run)

    # ------------------------------------------------------------------ a user

    def _work_s(self, run: Run) -> float:
        return run.user.bursts[run.number][1]

    def _think(self, run: Run) -> None:
        if run.number == len(run.user.bursts):
            run.phase, run.next_s = "over", math.inf
            return
        run.phase, run.next_s = "think", self.now_s + run.user.bursts[run.number][0]

    def _ask(self, run: Run) -> None:
        user = run.user
        run.phase, run.next_s, run.asked_s = "wait", math.inf, self.now_s
        run.left_s = self._work_s(run)
        one = Claim(
            f"c{self.next_epoch()}",
            user.kernel_id,
            user.mib * MIB,
            self.now_s,
            math.inf,
            user.priority,
        )
        self.claims[one.claim_id] = one
        kernel = self.kernels[user.kernel_id]
        run.had_s = kernel.attained_s if self.now_s - kernel.last_used_s < GAP_S else 0.0
        self.change(user.kernel_id, busy=True, waiting=True, attained_s=run.had_s)

    def _start(self, run: Run, delay_s: float, waited_s: float) -> None:
        self.waits.append((waited_s, run.user.kernel_id))
        if run.phase == "halted":
            run.switches.append((self.now_s, "back"))
        run.phase, run.next_s = "run", self.now_s + delay_s + run.left_s
        self.switched_s += delay_s
        self.change(run.user.kernel_id, used_bytes=run.user.mib * MIB)

    def _stop(self, run: Run) -> None:
        run.left_s = max(0.0, run.next_s - self.now_s)
        run.phase, run.next_s = "halted", math.inf
        run.switches.append((self.now_s, "out"))

    def _end(self, run: Run) -> None:
        self.done.append(
            Done(run.user.kernel_id, run.asked_s, self.now_s, self._work_s(run)),
        )
        self.change(run.user.kernel_id, busy=False, last_used_s=self.now_s)
        run.number += 1
        self._think(run)
