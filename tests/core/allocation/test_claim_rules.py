from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import (
    NOW,
    bound,
    claim,
    forecast,
    gpu,
    kinds,
    lease,
    of,
    suspended,
    waiting,
)
from allocation_cluster import view as make_view

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState, RiskLevel
from jupyter_gpu_predict.core.plans import Bind, Migrate, Queue, Reclaim, Refuse, Release, Resize

NEW = KernelView("new", None, busy=True, waiting=True)


def plan_for(gpus, kernels, claims, **settings):
    return decide(make_view(gpus, kernels, claims, **settings))


def test_a_claim_that_fits_is_bound_at_once():
    plan = plan_for([gpu(0)], [NEW], [claim("new", 300)])
    (bind,) = plan.actions
    assert (bind.gpu_uuid, bind.bytes, bind.claim_id) == ("G0", 300 * MIB, "c-new")
    assert bind.reason == "Bind 300 MiB on G0 to new (212 MiB stay free)"


def test_a_claim_for_what_the_kernel_holds_keeps_its_lease():
    plan = plan_for([gpu(0)], [waiting(bound("a", "G0", 400, used=50))], [claim("a", 300)])
    (bind,) = plan.actions
    assert bind.bytes == 400 * MIB


def test_suspended_state_comes_back_whole():
    plan = plan_for([gpu(0), gpu(1)], [waiting(suspended("a", "G1", 300))], [claim("a", 100)])
    (bind,) = plan.actions
    assert (bind.gpu_uuid, bind.bytes) == ("G1", 300 * MIB)


def test_a_kernel_not_seen_yet_can_be_given_a_gpu_for_its_launch():
    (bind,) = plan_for([gpu(0)], [], [claim("unborn", 10, origin="launch")]).actions
    assert isinstance(bind, Bind)


def test_the_least_recently_used_idle_kernel_gives_way_first():
    kernels = [
        bound("recent", "G0", 200, last_used_s=900.0),
        bound("analysis", "G0", 310, last_used_s=NOW - 120, forecast=forecast("analysis", 0.08)),
        NEW,
    ]
    plan = plan_for([gpu(0)], kernels, [claim("new", 300)])
    assert kinds(plan) == ["Reclaim", "Bind"]
    reclaim = plan.actions[0]
    assert reclaim.kernel_id == "analysis"
    assert reclaim.for_kernel_id == "new"
    assert reclaim.reason == (
        "Take 310 MiB back from analysis (idle 120 s, P(needed in 15 s) = 0.08) "
        "because new claims 300 MiB"
    )


def test_restore_cost_breaks_ties():
    kernels = [
        bound("a", "G0", 250, restore_cost_s=3.0),
        bound("b", "G0", 250, restore_cost_s=1.0),
        NEW,
    ]
    plan = plan_for([gpu(0)], kernels, [claim("new", 250)])
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["b"]


def test_no_more_victims_than_needed():
    kernels = [
        bound("oldest", "G0", 100, last_used_s=10.0),
        bound("old", "G0", 400, last_used_s=20.0),
        NEW,
    ]
    plan = plan_for([gpu(0)], kernels, [claim("new", 400)])
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["old"]


def test_slack_goes_before_anybody_is_suspended():
    kernels = [
        bound("roomy", "G0", 300, used=100),
        bound("full", "G0", 200, last_used_s=1.0),
        NEW,
    ]
    plan = plan_for([gpu(0)], kernels, [claim("new", 200)], headroom_bytes=8 * MIB)
    assert kinds(plan) == ["Resize", "Bind"]
    assert plan.actions[0].bytes == 108 * MIB


def test_an_unused_reservation_goes_before_a_kernel_is_suspended():
    held = lease("r", "G0", 300, LeaseState.RESERVED, since_s=900.0, expires_s=NOW + 20)
    kernels = [KernelView("r", held), bound("a", "G0", 200), NEW]
    plan = plan_for([gpu(0)], kernels, [claim("new", 300)])
    assert kinds(plan) == ["Release", "Bind"]


def test_a_likely_reservation_is_left_its_grace_period():
    held = lease("r", "G0", 300, LeaseState.RESERVED, since_s=NOW - 1, expires_s=NOW + 29)
    sure = KernelView("r", held, forecast=forecast("r", 0.9))
    unsure = replace(sure, forecast=forecast("r", 0.1))
    assert kinds(plan_for([gpu(0)], [sure, NEW], [claim("new", 300)])) == ["Queue"]
    assert kinds(plan_for([gpu(0)], [unsure, NEW], [claim("new", 300)])) == ["Release", "Bind"]
    first = [claim("new", 300, priority=1)]
    assert kinds(plan_for([gpu(0)], [sure, NEW], first)) == ["Release", "Bind"]


@pytest.mark.parametrize(
    "changes",
    [
        {"busy": True},
        {"pinned": True},
        {"suspend_by": None},
        {"migrating": True},
        {"priority": 1},
    ],
)
def test_who_may_not_be_suspended_makes_the_claim_wait(changes):
    plan = plan_for([gpu(0)], [bound("a", "G0", 400, **changes), NEW], [claim("new", 300)])
    assert kinds(plan) == ["Queue"]


def test_within_the_grace_period_the_claim_waits_for_its_end():
    kernels = [
        bound("a", "G0", 256, last_used_s=NOW - 4.0),
        bound("b", "G0", 256, last_used_s=NOW - 2.0),
        NEW,
    ]
    (queue,) = plan_for([gpu(0)], kernels, [claim("new", 300)]).actions
    assert (queue.position, queue.expected_wait_s) == (1, 3.0)
    (queue,) = plan_for([gpu(0)], kernels, [claim("new", 200)]).actions
    assert queue.expected_wait_s == 1.0


def test_what_was_bound_ahead_of_use_has_its_grace_period_too():
    just = bound("a", "G0", 400)
    just = replace(just, lease=replace(just.lease, since_s=NOW - 1.0))
    (queue,) = plan_for([gpu(0)], [just, NEW], [claim("new", 300)]).actions
    assert queue.expected_wait_s == 4.0


def test_the_expected_wait_is_the_end_of_running_cells_and_the_restore():
    kernels = [
        bound("long", "G0", 256, busy=True, expected_end_s=NOW + 90.0),
        bound("soon", "G0", 256, busy=True, expected_end_s=NOW + 10.0),
        waiting(suspended("me", "G0", 200, restore_cost_s=2.0)),
    ]
    (queue,) = plan_for([gpu(0)], kernels, [claim("me", 200)]).actions
    assert queue.expected_wait_s == 10.0 + 5.0 + 2.0
    kernels[:2] = [bound("unknown", "G0", 400, busy=True)]
    (queue,) = plan_for([gpu(0)], kernels, [claim("me", 200)]).actions
    assert queue.expected_wait_s is None


def test_claims_are_served_by_priority_then_age():
    claims = [
        claim("late", 300, made_s=950.0),
        claim("early", 300, made_s=900.0),
        claim("urgent", 300, made_s=990.0, priority=1),
    ]
    plan = plan_for([gpu(0)], [], claims)
    assert [a.kernel_id for a in plan.actions] == ["urgent", "early", "late"]
    assert [q.position for q in of(plan, Queue)] == [1, 2]


def test_a_small_claim_does_not_pass_where_it_takes_what_an_earlier_one_could_use():
    busy = bound("busy", "G0", 300, busy=True)
    claims = [claim("large", 400, made_s=800.0), claim("small", 100, made_s=900.0)]
    plan = plan_for([gpu(0)], [busy], claims)
    assert kinds(plan) == ["Queue", "Queue"]
    assert "behind large" in plan.actions[1].reason


def test_a_small_claim_passes_on_a_gpu_the_earlier_one_can_never_use():
    busy = bound("busy", "G0", 300, busy=True)
    claims = [claim("large", 400, made_s=800.0), claim("small", 100, made_s=900.0)]
    plan = plan_for([gpu(0), gpu(1, 256)], [busy], claims)
    assert kinds(plan) == ["Bind", "Queue"]
    assert plan.actions[0].gpu_uuid == "G1"


def test_a_claim_that_needs_nothing_more_passes():
    kernels = [bound("busy", "G0", 300, busy=True), waiting(bound("mine", "G0", 100))]
    claims = [claim("large", 400, made_s=800.0), claim("mine", 100, made_s=900.0)]
    assert kinds(plan_for([gpu(0)], kernels, claims)) == ["Bind", "Queue"]


def test_nobody_waits_behind_a_claim_that_pinned_memory_keeps_from_being_met():
    pinned = bound("pinned", "G0", 300, pinned=True)
    claims = [claim("large", 400, made_s=800.0), claim("small", 100, made_s=900.0)]
    plan = plan_for([gpu(0)], [pinned], claims)
    assert kinds(plan) == ["Bind", "Queue"]
    assert "pinned" in plan.actions[1].reason


def test_what_a_later_claim_leaves_of_its_reservation_goes_to_an_earlier_one():
    held = lease("r", "G0", 200, LeaseState.RESERVED, since_s=NOW - 1, expires_s=NOW + 29)
    kernels = [waiting(KernelView("r", held)), NEW]
    claims = [claim("new", 400, made_s=800.0), claim("r", 100, made_s=900.0)]
    plan = plan_for([gpu(0)], kernels, claims)
    assert [(type(a), a.kernel_id) for a in plan.actions] == [(Bind, "r"), (Bind, "new")]


def test_past_its_deadline_or_beyond_any_gpu_a_claim_is_refused():
    claims = [claim("late", 100, deadline_s=NOW), claim("huge", 600)]
    plan = plan_for([gpu(0)], [], claims)
    late, huge = sorted(of(plan, Refuse), key=lambda r: r.claim_id, reverse=True)
    assert late.reason == "Refuse late: no 100 MiB came free in 100 s"
    assert "600 MiB is more than the largest GPU has (512 MiB)" in huge.reason


def test_closed_gpus_get_no_new_leases():
    gpus = [gpu(0, cordoned=True), gpu(1, risk=RiskLevel.CRITICAL, cordoned=True)]
    (queue,) = plan_for(gpus, [], [claim("new", 100)]).actions
    assert "cordoned" in queue.reason


def test_state_on_a_cordoned_gpu_may_come_back_there():
    gpus = [gpu(0, cordoned=True), gpu(1)]
    (bind,) = plan_for(gpus, [waiting(suspended("a", "G0", 100))], [claim("a", 100)]).actions
    assert (type(bind), bind.gpu_uuid) == (Bind, "G0")


def test_affinity_is_kept():
    plan = plan_for([gpu(0), gpu(1)], [], [claim("new", 100, affinity="G1")])
    assert plan.actions[0].gpu_uuid == "G1"


def test_a_waiting_kernel_is_suspended_only_for_an_earlier_claim_and_only_as_a_last_resort():
    holder = waiting(bound("holder", "G0", 300))
    idle = bound("idle", "G0", 200, last_used_s=900.0)
    early = [claim("new", 200, made_s=800.0), claim("holder", 400, made_s=900.0)]
    plan = plan_for([gpu(0)], [holder, idle, NEW], early)
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["idle"]

    early = [claim("new", 400, made_s=800.0), claim("holder", 400, made_s=900.0)]
    plan = plan_for([gpu(0)], [holder, NEW], early)
    assert kinds(plan) == ["Reclaim", "Bind", "Queue"]
    assert "its cell waits behind" in plan.actions[0].reason

    late = [claim("new", 400, made_s=950.0), claim("holder", 520, made_s=900.0, affinity="G0")]
    plan = plan_for([gpu(0, 600)], [holder, bound("b", "G0", 290, busy=True), NEW], late)
    assert not of(plan, Reclaim)


def test_a_waiting_kernel_is_not_suspended_for_a_later_claim():
    kernels = [bound("pinned", "G0", 300, pinned=True), waiting(bound("early", "G0", 100)), NEW]
    claims = [claim("early", 400, made_s=800.0), claim("new", 150, made_s=900.0)]
    assert kinds(plan_for([gpu(0)], kernels, claims)) == ["Queue", "Queue"]


def test_a_movable_kernel_moves_when_its_own_gpu_has_no_way():
    kernels = [
        bound("busy", "G0", 400, busy=True),
        waiting(suspended("me", "G0", 200, movable=True)),
    ]
    plan = plan_for([gpu(0), gpu(1)], kernels, [claim("me", 200)])
    assert kinds(plan) == ["Migrate", "Queue"]
    assert plan.actions[0].target_gpu_uuid == "G1"
    kernels[1] = replace(kernels[1], movable=False)
    assert kinds(plan_for([gpu(0), gpu(1)], kernels, [claim("me", 200)])) == ["Queue"]
    kernels[1] = replace(kernels[1], movable=True)
    kernels[0] = bound("idle", "G0", 400)
    plan = plan_for([gpu(0), gpu(1)], kernels, [claim("me", 200)])
    assert kinds(plan) == ["Reclaim", "Bind"], "staying is cheaper than moving"


def test_a_kernel_tied_to_a_gpu_too_small_for_its_claim_is_told_to_migrate():
    tied = waiting(bound("a", "G0", 200))
    (refuse,) = plan_for([gpu(0), gpu(1, 1024)], [tied], [claim("a", 800)]).actions
    assert "has 512 MiB; migrate it first" in refuse.reason
    plan = plan_for([gpu(0), gpu(1, 1024)], [replace(tied, movable=True)], [claim("a", 800)])
    assert [m.target_gpu_uuid for m in of(plan, Migrate)] == ["G1"]


def test_a_kernel_that_moves_waits_and_keeps_its_place_at_the_target():
    moving = replace(
        waiting(suspended("a", "G0", 400)), migrating=True, target_gpu_uuid="G1", target_bytes=0
    )
    claims = [claim("a", 400, made_s=800.0), claim("new", 300, affinity="G1")]
    plan = plan_for([gpu(0), gpu(1)], [moving, NEW], claims)
    assert kinds(plan) == ["Queue", "Queue"]


def test_slack_and_reservations_of_a_higher_priority_are_not_touched():
    kernels = [bound("roomy", "G0", 400, used=0, priority=1), NEW]
    plan = plan_for([gpu(0)], kernels, [claim("new", 300)])
    assert not of(plan, Resize)
    assert not of(plan, Release)


def test_duties_decide_between_gpus_with_room():
    kernels = [
        bound("hard", "G0", 50, duty=0.8, busy=True),
        bound("soft", "G1", 200, duty=0.2, busy=True),
        replace(NEW, duty=0.3),
    ]
    plan = plan_for([gpu(0), gpu(1)], kernels, [claim("new", 100)])
    assert plan.actions[0].gpu_uuid == "G1"
    kernels[1] = replace(kernels[1], duty=0.7)
    assert isinstance(plan_for([gpu(0), gpu(1)], kernels, [claim("new", 100)]).actions[0], Bind)
