"""Long bursts make way in the middle of a cell, one rule at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, gpu, kinds, lease, of, suspended, view, waiting

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState, Rung
from jupyter_gpu_predict.core.plans import Bind, Migrate, Queue, Reclaim, Refuse, TakeSnapshot

NEW = KernelView("new", None, busy=True, waiting=True)


def burst(kernel_id: str = "long", place: str = "G0", size: int = 500, **changes) -> KernelView:
    """A burst that has had ten minutes and can be halted."""
    defaults = {
        "busy": True,
        "attained_s": 600.0,
        "why_not_preempt": None,
        "restore_cost_s": 2.0,
    }
    return bound(kernel_id, place, size, **defaults | changes)


def halted(kernel_id: str = "old", place: str = "G0", size: int = 300, **changes) -> KernelView:
    """A burst that was halted in its middle, at 900 s."""
    defaults = {
        "busy": True,
        "checkpointed": True,
        "preempted_s": 900.0,
        "switched_s": 900.0,
        "attained_s": 600.0,
    }
    return suspended(kernel_id, place, size, **defaults | changes)


def goes_on(kernel_id: str = "old", size: int = 300, *, made_s: float = 900.0, **changes):
    return claim(kernel_id, size, made_s=made_s, deadline_s=math.inf, origin="preempted", **changes)


def preempting(gpus, kernels, claims, **settings):
    return decide(view(gpus, kernels, claims, preempt=True, **settings))


def test_a_long_burst_is_halted_for_one_that_has_had_nothing():
    plan = preempting([gpu(0)], [burst(), NEW], [claim("new", 300)])
    assert plan.actions[0] == Reclaim(
        "long",
        Rung.DRIVER_CHECKPOINT,
        "new",
        "Halt long and take 500 MiB back (its burst has had 600 s of its GPU, that of new less "
        "than 30 s) because new claims 300 MiB (4.0 s to lose, 605 s of waiting to gain); by "
        "driver checkpoint, in the middle of its cell",
        mid_cell=True,
    )
    assert kinds(plan) == ["Reclaim", "Bind"]


def test_it_is_off_by_default():
    assert kinds(decide(view([gpu(0)], [burst(), NEW], [claim("new", 300)]))) == ["Queue"]


@pytest.mark.parametrize(
    "changes",
    [
        {"why_not_preempt": "it talks to another process on the GPU"},
        {"pinned": True},
        {"priority": 1},
        {"migrating": True},
        {"attained_s": 59.0},
        {"switched_s": NOW - 59.0},
        {"restore_cost_s": 303.0},
        {"expected_end_s": NOW + 3.0, "restore_cost_s": 5.0},
    ],
    ids=str,
)
def test_who_is_not_halted(changes):
    plan = preempting([gpu(0)], [burst(**changes), NEW], [claim("new", 300)])
    assert kinds(plan) == ["Queue"]


def test_what_has_just_been_bound_is_not_halted():
    just = burst()
    just = replace(just, lease=replace(just.lease, since_s=NOW - 59.0))
    assert kinds(preempting([gpu(0)], [just, NEW], [claim("new", 300)])) == ["Queue"]


@pytest.mark.parametrize("origin", ["launch", "magic", "rest"])
def test_nobody_is_halted_for_a_claim_without_a_waiting_cell(origin):
    plan = preempting([gpu(0)], [burst(), NEW], [claim("new", 300, origin=origin)])
    assert kinds(plan) == ["Queue"]


def test_the_halted_must_have_had_the_factor_more():
    for attained_s, kind in ((299.0, "Reclaim"), (301.0, "Queue")):
        kernels = [burst(), replace(NEW, attained_s=attained_s)]
        assert kinds(preempting([gpu(0)], kernels, [claim("new", 300)]))[0] == kind


def test_what_was_halted_may_halt_in_turn():
    kernels = [burst("now", attained_s=1300.0), halted()]
    plan = preempting([gpu(0)], kernels, [goes_on()])
    assert kinds(plan) == ["Reclaim", "Bind"]
    assert plan.actions[1].bytes == 300 * MIB


def test_nobody_is_halted_beside_free_memory_or_idle_kernels():
    """Also not beside an idle kernel whose grace period is about to end."""
    beside = [gpu(0), gpu(1)]
    assert kinds(preempting(beside, [burst(), NEW], [claim("new", 300)])) == ["Bind"]
    idle = bound("idle", "G1", 500)
    plan = preempting(beside, [burst(), idle, NEW], [claim("new", 300)])
    assert [(r.kernel_id, r.mid_cell) for r in of(plan, Reclaim)] == [("idle", False)]
    fresh = bound("idle", "G1", 500, last_used_s=NOW - 1.0)
    assert kinds(preempting(beside, [burst(), fresh, NEW], [claim("new", 300)])) == ["Queue"]


def test_a_kernel_tied_to_its_gpu_moves_rather_than_halts():
    mine = waiting(suspended("mine", "G0", 300, movable=True))
    plan = preempting([gpu(0), gpu(1)], [burst(), mine], [claim("mine", 300)])
    assert kinds(plan) == ["Migrate", "Queue"]
    plan = preempting(
        [gpu(0), gpu(1)], [burst(), replace(mine, movable=False)], [claim("mine", 300)]
    )
    assert kinds(plan) == ["Reclaim", "Bind"]


def test_the_one_that_has_had_most_makes_way_and_no_more_than_needed():
    kernels = [
        burst("less", "G0", 200, attained_s=700.0),
        burst("most", "G0", 200, attained_s=900.0),
        burst("other", "G1", 500, attained_s=800.0),
        NEW,
    ]
    halted_ids = lambda size: [  # noqa: E731
        r.kernel_id
        for r in of(preempting([gpu(0), gpu(1)], kernels, [claim("new", size)]), Reclaim)
    ]
    assert halted_ids(250) == ["most"]
    assert halted_ids(500) == ["other"], "one is cheaper than two"


def test_a_burst_is_halted_together_with_idle_kernels_where_both_are_needed():
    kernels = [burst(size=300), bound("idle", "G0", 200), NEW]
    plan = preempting([gpu(0)], kernels, [claim("new", 400)])
    assert [(r.kernel_id, r.mid_cell) for r in of(plan, Reclaim)] == [
        ("idle", False),
        ("long", True),
    ]
    plan = preempting([gpu(0)], kernels, [claim("new", 300)])
    assert [(r.kernel_id, r.mid_cell) for r in of(plan, Reclaim)] == [("long", True)]


def test_least_attained_service_goes_first_and_short_bursts_count_alike():
    kernels = [
        bound("busy", "G0", 500, busy=True),
        *(
            KernelView(k, None, busy=True, waiting=True, attained_s=had_s)
            for k, had_s in (("had", 200.0), ("little", 29.0), ("none", 0.0))
        ),
        halted(),
    ]
    claims = [
        claim("had", 300, made_s=960.0),
        claim("little", 300, made_s=970.0),
        claim("none", 300, made_s=980.0),
        goes_on(made_s=950.0),
    ]
    order = [q.kernel_id for q in of(preempting([gpu(0)], kernels, claims), Queue)]
    assert order == ["little", "none", "had", "old"]
    order = [q.kernel_id for q in of(decide(view([gpu(0)], kernels, claims)), Queue)]
    assert order == ["old", "had", "little", "none"], "by age without preemption"


def test_who_has_waited_long_goes_first_and_may_halt_whoever_has_had_the_minimum():
    kernels = [burst("now", attained_s=61.0), halted(), NEW]
    claims = [goes_on(made_s=879.0), claim("new", 500)]
    plan = preempting([gpu(0)], kernels, claims)
    assert [(type(a), a.kernel_id) for a in plan.actions] == [
        (Reclaim, "now"),
        (Bind, "old"),
        (Queue, "new"),
    ]
    assert "has waited longest" in plan.actions[0].reason
    plan = preempting([gpu(0)], kernels, [goes_on(made_s=881.0), claim("new", 500)])
    assert [a.kernel_id for a in plan.actions] == ["now", "new", "old"], "not old enough yet"
    urgent = preempting([gpu(0)], kernels, [claims[0], claim("new", 500, priority=1)])
    assert [a.kernel_id for a in urgent.actions][-1] == "old", "priority comes before age"


def test_a_halted_burst_goes_on_where_it_was_or_on_a_gpu_of_its_kind():
    busy = bound("busy", "G0", 500, busy=True)
    kernels = [busy, halted(movable=True)]
    (move, queue) = preempting([gpu(0), gpu(1)], kernels, [goes_on()]).actions
    assert (type(move), move.target_gpu_uuid, move.rung) == (
        Migrate,
        "G1",
        Rung.DRIVER_CHECKPOINT,
    )
    assert "moves to G1 first" in queue.reason
    other = replace(gpu(1), name="another")
    assert kinds(preempting([gpu(0), other], kernels, [goes_on()])) == ["Queue"]
    kernels[1] = replace(kernels[1], movable=False)
    assert kinds(preempting([gpu(0), gpu(1)], kernels, [goes_on()])) == ["Queue"]


def test_a_halted_burst_on_a_lost_gpu_waits_and_is_not_refused():
    plan = preempting([gpu(0, lost=True)], [halted()], [goes_on()])
    assert kinds(plan) == ["Cordon", "Queue"]
    assert not of(plan, Refuse)


def test_a_state_with_the_driver_is_neither_saved_nor_bound_elsewhere():
    """Nothing is asked of a process whose GPU calls would wait for the driver."""
    idle = suspended("idle", "G0", 300, checkpointed=True, changed_s=10.0)
    assert not of(decide(view([gpu(0)], [idle])), TakeSnapshot)
    assert of(decide(view([gpu(0)], [replace(idle, checkpointed=False)])), TakeSnapshot)
    small = replace(waiting(suspended("small", "G1", 0)), has_agent=False, checkpointed=True)
    plan = decide(view([gpu(0), gpu(1)], [small], [claim("small", 100)]))
    assert [b.gpu_uuid for b in of(plan, Bind)] == ["G1"]


def test_a_kernel_without_agent_is_suspended_by_the_driver_with_the_reason():
    held = bound(
        "julia",
        "G0",
        400,
        has_agent=False,
        suspend_by=Rung.DRIVER_CHECKPOINT,
        suspend_why="driver checkpoint, 0.80 s predicted for 400 MiB (in place: no agent)",
    )
    (reclaim, _) = decide(view([gpu(0)], [held, NEW], [claim("new", 300)])).actions
    assert (reclaim.rung, reclaim.mid_cell) == (Rung.DRIVER_CHECKPOINT, False)
    assert reclaim.reason.endswith(
        "; driver checkpoint, 0.80 s predicted for 400 MiB (in place: no agent)"
    )
    back = suspended("julia", "G0", 400, has_agent=False, checkpointed=True, queued_runs=1)
    assert kinds(decide(view([gpu(0)], [back]))) == ["Prebind"]
    reserved = KernelView("r", lease("r", "G0", 0, LeaseState.SUSPENDED), has_agent=False)
    assert not decide(view([gpu(0)], [reserved])).actions
