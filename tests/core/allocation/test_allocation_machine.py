"""Random histories of a cluster under the policy; the rules are checked in `Cluster.step`."""

from __future__ import annotations

from dataclasses import replace

from allocation_cluster import Cluster, forecast, gpu
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jupyter_gpu_predict.core.model import (
    MIB,
    Claim,
    KernelView,
    LeaseState,
    PolicySettings,
    RiskLevel,
    Rung,
)

SIZES = st.sampled_from([200, 300, 150, 400, 100, 50, 512, 700, 0])
PLACES = st.integers(0, 7)


def _cheapest(agent: bool, driver: bool) -> Rung | None:
    return Rung.IN_PLACE if agent else Rung.DRIVER_CHECKPOINT if driver else None


class ClusterHistory(RuleBasedStateMachine):
    @initialize(
        totals=st.lists(st.sampled_from([256, 512, 512, 1024]), min_size=1, max_size=3),
        prebind=st.booleans(),
        headroom=st.sampled_from([0, 20 * MIB]),
        preempt=st.booleans(),
        consolidate=st.booleans(),
        slices=st.sampled_from([0, 0, 1, 3]),
    )
    def build(self, totals, prebind, headroom, preempt, consolidate, slices):
        gpus = [gpu(i, total, whole=i < slices) for i, total in enumerate(totals)]
        policy = PolicySettings(
            prebind=prebind,
            headroom_bytes=headroom,
            preempt=preempt,
            preempt_min_s=30.0,
            preempt_age_s=120.0,
            consolidate=consolidate,
        )
        self.cluster = Cluster(gpus, policy)
        self.made = 0
        for cost in (0.1, 1.0, 2.0, 0.5):
            self.launch(0, True, cost == 1.0, cost, None, True)

    def pick(self, place, keep=lambda k: True) -> KernelView | None:
        fitting = [k for k in self.cluster.kernels.values() if keep(k)]
        return fitting[place % len(fitting)] if fitting else None

    @rule(
        priority=st.sampled_from([-1, 0, 0, 0, 1]),
        agent=st.sampled_from([True, True, True, False]),
        movable=st.booleans(),
        cost=st.sampled_from([0.0, 0.1, 2.0]),
        duty=st.sampled_from([None, 0.1, 0.6]),
        driver=st.booleans(),
    )
    def launch(self, priority, agent, movable, cost, duty, driver):
        if len(self.cluster.kernels) < 8:
            self.made += 1
            kernel_id = f"k{self.made}"
            self.cluster.kernels[kernel_id] = KernelView(
                kernel_id,
                None,
                priority=priority,
                has_agent=agent,
                suspend_by=_cheapest(agent, driver),
                why_not_preempt=None if driver else "it is not proven",
                movable=movable and agent,
                restore_cost_s=cost,
                duty=duty,
            )

    @rule(
        wishes=st.lists(st.tuples(PLACES, SIZES), min_size=1, max_size=4),
        patience_s=st.sampled_from([600.0, 60.0, 3.0]),
        affinity=st.sampled_from([None, None, None, "G0", "G1"]),
    )
    def ask(self, wishes, patience_s, affinity):
        now_s = self.cluster.now_s
        for place, size in wishes:
            k = self.pick(place, lambda k: not k.busy and not k.migrating)
            if k is None:
                return
            if now_s - k.last_used_s >= 60.0:
                self.cluster.change(k.kernel_id, attained_s=0.0)
            self.made += 1
            one = Claim(
                f"c{self.made}",
                k.kernel_id,
                size * MIB,
                now_s,
                now_s + patience_s,
                priority=k.priority,
                affinity=affinity,
            )
            self.cluster.claims[one.claim_id] = one
            self.cluster.change(k.kernel_id, busy=True, waiting=True)

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=4), after_s=st.sampled_from([6.0, 1.0, 40.0]))
    def run_and_end(self, sizes, after_s):
        self.cluster.advance(after_s)
        for size in sizes:
            k = self.pick(0, lambda k: k.busy and not k.waiting and k.preempted_s is None)
            if k is None:
                return
            held = k.lease
            if k.suspended_bytes == 0 and held is not None and held.state is LeaseState.BOUND:
                used = held.bytes if size == 0 else min(size * MIB, held.bytes)
                self.cluster.change(k.kernel_id, used_bytes=used)
            self.cluster.change(k.kernel_id, busy=False, last_used_s=self.cluster.now_s)

    @rule(place=PLACES, size=st.sampled_from([10, 100, 300]), left_s=st.sampled_from([None, 7.0]))
    def grow_while_running(self, place, size, left_s):
        k = self.pick(place, lambda k: k.busy and not k.waiting)
        if k is not None and k.lease is not None and k.lease.state is LeaseState.BOUND:
            self.cluster.change(
                k.kernel_id,
                used_bytes=k.used_bytes + size * MIB,
                expected_end_s=None if left_s is None else self.cluster.now_s + left_s,
            )

    @rule(place=PLACES, pinned=st.sampled_from([False, False, True]))
    def pin(self, place, pinned):
        if k := self.pick(place):
            self.cluster.change(k.kernel_id, pinned=pinned)

    @rule(place=PLACES, why=st.sampled_from([None, None, "a user thread is at work"]))
    def keep(self, place, why):
        if k := self.pick(place):
            by = None if why else _cheapest(k.has_agent, k.why_not_preempt is None)
            self.cluster.change(k.kernel_id, keep_reason=why, suspend_by=by)

    @rule(
        place=PLACES,
        probability=st.sampled_from([0.9, 0.0, 0.3, 0.6]),
        high=SIZES,
        queued=st.sampled_from([0, 0, 2]),
    )
    def foresee(self, place, probability, high, queued):
        if k := self.pick(place):
            seen = forecast(k.kernel_id, probability, high)
            self.cluster.change(k.kernel_id, forecast=seen, queued_runs=queued)

    @rule(
        place=PLACES,
        trouble=st.sampled_from(["none", "none", "none", "warning", "critical", "lost", "cordon"]),
    )
    def health(self, place, trouble):
        g = list(self.cluster.gpus.values())[place % len(self.cluster.gpus)]
        self.cluster.gpus[g.uuid] = replace(
            g,
            risk=RiskLevel(trouble) if trouble in ("warning", "critical") else RiskLevel.NONE,
            lost=trouble == "lost",
            cordoned=trouble == "cordon",
        )

    @rule(place=PLACES, foreign=st.sampled_from([0, 100]))
    def others_use_it(self, place, foreign):
        g = list(self.cluster.gpus.values())[place % len(self.cluster.gpus)]
        self.cluster.gpus[g.uuid] = replace(g, foreign_bytes=foreign * MIB)

    @precondition(lambda self: any(k.migrating for k in self.cluster.kernels.values()))
    @rule(place=PLACES, works=st.booleans())
    def end_migration(self, place, works):
        k = self.pick(place, lambda k: k.migrating and (not k.busy or k.waiting))
        if k is not None:
            fits = k.lease is None or k.used_bytes <= k.target_bytes
            self.cluster.end_migration(k.kernel_id, commit=works and fits)

    @rule(place=PLACES)
    def die(self, place):
        if k := self.pick(place):
            del self.cluster.kernels[k.kernel_id]
            self.cluster.former.pop(k.kernel_id, None)
            gone = [c for c, one in self.cluster.claims.items() if one.kernel_id == k.kernel_id]
            for claim_id in gone:
                del self.cluster.claims[claim_id]

    @rule(after_s=st.sampled_from([6.0, 40.0, 0.5, 400.0]))
    def wait(self, after_s):
        self.cluster.advance(after_s)

    @invariant()
    def decide_and_act(self):
        self.cluster.step()


TestClusterHistory = ClusterHistory.TestCase
TestClusterHistory.settings = settings(
    max_examples=120,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
