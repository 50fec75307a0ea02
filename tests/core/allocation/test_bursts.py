"""Histories of bursts under preemption: nobody starves, nobody is switched to and fro."""

from __future__ import annotations

from dataclasses import replace

from allocation_cluster import gpu
from burst_cluster import BurstCluster, User
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import PolicySettings

POLICY = PolicySettings(
    preempt=True, preempt_min_s=10.0, preempt_age_s=60.0, grace_period_s=2.0, prebind=False
)
SWITCH_S = 1.0
WORK_S = st.sampled_from([3.0, 10.0, 90.0, 300.0])
THOUGHT_S = st.sampled_from([1.0, 20.0, 100.0])
BURSTS = st.lists(st.tuples(THOUGHT_S, WORK_S), min_size=1, max_size=3)


@st.composite
def clusters(draw, *, odd: bool = False) -> BurstCluster:
    """One to three GPUs and users who want a third of one, a half or all of it.

    With `odd` some are pinned, of another priority, or cannot be halted.
    """
    users = []
    for i in range(draw(st.integers(2, 6))):
        users.append(
            User(
                f"k{i}",
                draw(st.sampled_from([512, 512, 256, 170])),
                draw(BURSTS),
                pinned=odd and draw(st.integers(0, 2)) == 0,
                why_not_preempt="not proven" if odd and draw(st.integers(0, 3)) == 0 else None,
                priority=draw(st.sampled_from([0, 0, 1])) if odd else 0,
            )
        )
    gpus = [gpu(i) for i in range(draw(st.sampled_from([1, 1, 2, 3])))]
    return BurstCluster(gpus, users, POLICY, switch_s=SWITCH_S, movable=draw(st.booleans()))


def histories(number):
    return settings(
        max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )


@given(clusters())
@histories(25)
def test_every_burst_ends_and_nobody_waits_longer_than_the_bound(cluster):
    """The bound stands in `core.allocation.preempt`; capacity and order are watched each step."""
    cluster.work()
    assert len(cluster.done) == sum(len(r.user.bursts) for r in cluster.runs.values())
    others = len(cluster.runs) - 1
    turn_s = POLICY.preempt_min_s + POLICY.grace_period_s + 3 * 2 * SWITCH_S
    # The clock here looks again after a tenth of the wait so far.
    bound_s = 1.1 * (POLICY.preempt_age_s + (others + 1) * turn_s)
    assert max(cluster.waits)[0] <= bound_s


@given(clusters(odd=True))
@histories(60)
def test_no_burst_is_halted_soon_after_a_switch_nor_one_that_must_not_be(cluster):
    """Those that cannot be halted keep their GPU as without preemption, so time ends the history.

    A pinned kernel keeps its memory for good: others may wait for ever, as without preemption.
    """
    cluster.work(until_s=cluster.now_s + 600.0)
    for run in cluster.runs.values():
        if run.user.pinned or run.user.why_not_preempt:
            assert not run.switches
        last_s = None
        for at_s, way in run.switches:
            if way == "out":
                assert last_s is None or at_s - last_s >= POLICY.preempt_min_s
            last_s = at_s


def test_bursts_that_never_seem_to_end_take_turns():
    users = [User(f"k{i}", 512, [(1.0 + i, 600.0)]) for i in range(3)]
    cluster = BurstCluster([gpu(0)], users, POLICY, switch_s=SWITCH_S)
    cluster.work()
    assert [d.kernel_id for d in cluster.done] != []
    assert all(len(r.switches) >= 4 for r in cluster.runs.values())
    ends = [d.done_s for d in cluster.done]
    assert max(ends) - min(ends) < 2 * 600.0, "they share the GPU instead of queueing for it"


def test_short_bursts_gain_and_long_ones_pay_little():
    """Heavy-tailed bursts on one GPU each way: figures are `benchmarks/bench_decide.py`'s."""

    def delays(preempt: bool) -> tuple[float, float]:
        users = [User("long", 512, [(5.0, 3000.0)])]
        users += [User(f"k{i}", 512, [(100.0 + 40 * i, 10.0)] * 3) for i in range(3)]
        cluster = BurstCluster([gpu(0)], users, replace(POLICY, preempt=preempt))
        cluster.work()
        long_s = next(d.delay_s for d in cluster.done if d.kernel_id == "long")
        return max(d.delay_s for d in cluster.done if d.kernel_id != "long"), long_s

    (short_with, long_with), (short_without, long_without) = delays(True), delays(False)
    assert short_without > 2500.0
    assert short_with < 60.0
    assert long_with < 400.0
    assert long_without == 0.0


@given(clusters(odd=True))
@histories(10)
def test_without_preempt_nothing_that_it_looks_at_changes_a_plan(cluster):
    cluster.settings = replace(POLICY, preempt=False)
    plain = replace(cluster.settings, preempt_min_s=1.0, preempt_factor=1.0, preempt_age_s=1.0)
    seen = []

    def step():
        view = cluster.view()
        blank = tuple(
            replace(k, attained_s=0.0, switched_s=0.0, why_not_preempt="no") for k in view.kernels
        )
        assert decide(view) == decide(replace(view, kernels=blank, settings=plain))
        seen.append(view)
        return type(cluster).step(cluster)

    cluster.step = step
    cluster.work(until_s=cluster.now_s + 600.0)
    assert seen
    assert cluster.halts == 0
