from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, gpu, kinds, lease, of, suspended, view, waiting

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState, RiskLevel, Rung
from jupyter_gpu_predict.core.plans import (
    Bind,
    Cordon,
    Migrate,
    Queue,
    Reclaim,
    Refuse,
    TakeSnapshot,
)

FAILING = gpu(0, risk=RiskLevel.CRITICAL)
CORDONED = replace(FAILING, cordoned=True)


def test_a_critical_gpu_is_cordoned_once_and_left_by_relaunch():
    plan = decide(view([FAILING, gpu(1)], [bound("a", "G0", 300)]))
    assert kinds(plan) == ["Cordon", "Migrate"]
    move = plan.actions[1]
    assert (move.target_gpu_uuid, move.rung, move.bytes) == ("G1", Rung.RELAUNCH, 300 * MIB)
    assert move.reason == "Move a (300 MiB) to G1: G0 is likely to fail soon"
    assert kinds(decide(view([CORDONED, gpu(1)], [bound("a", "G0", 300)]))) == ["Migrate"]


def test_a_lost_gpu_is_left_too():
    plan = decide(view([gpu(0, lost=True), gpu(1)], [suspended("a", "G0", 300)]))
    assert kinds(plan) == ["Cordon", "Migrate"]
    plan = decide(view([gpu(1)], [suspended("a", "GONE", 300)]))
    assert kinds(plan) == ["Migrate"]


def test_idle_kernels_go_first_and_running_ones_at_the_end_of_their_cell():
    kernels = [bound("run", "G0", 100, busy=True), bound("idle", "G0", 100)]
    plan = decide(view([CORDONED, gpu(1)], kernels))
    assert [m.kernel_id for m in of(plan, Migrate)] == ["idle", "run"]
    assert "once its cell ends" in plan.actions[1].reason


def test_who_moves_already_is_not_moved_again():
    moving = bound("a", "G0", 100, migrating=True, target_gpu_uuid="G1", target_bytes=100 * MIB)
    assert decide(view([CORDONED, gpu(1)], [moving])).actions == ()


def test_a_suspended_kernel_moves_its_lease_and_takes_no_memory_there():
    kernels = [suspended("a", "G0", 300), bound("full", "G1", 512, busy=True)]
    (move,) = decide(view([CORDONED, gpu(1)], kernels)).actions
    assert (move.target_gpu_uuid, move.bytes) == ("G1", 0)


def test_the_safest_then_the_emptiest_gpu_is_the_target():
    gpus = [CORDONED, gpu(1, risk=RiskLevel.WARNING), gpu(2, 400), gpu(3, 512)]
    plan = decide(view(gpus, [bound("a", "G0", 300)]))
    assert [m.target_gpu_uuid for m in of(plan, Migrate)] == ["G3"]
    gpus = [CORDONED, gpu(1, cordoned=True), gpu(2, lost=True, cordoned=True)]
    assert not of(decide(view(gpus, [bound("a", "G0", 300)])), Migrate)


def test_an_idle_kernel_leaves_its_slack_behind_where_that_helps():
    kernels = [bound("a", "G0", 400, used=100), bound("b", "G1", 300, busy=True)]
    (move,) = decide(view([CORDONED, gpu(1)], kernels)).actions
    assert move.bytes == 100 * MIB


def test_idle_kernels_make_room_at_the_target():
    kernels = [
        bound("a", "G0", 400),
        bound("old", "G1", 400, last_used_s=10.0),
        bound("young", "G1", 112, last_used_s=20.0),
    ]
    plan = decide(view([CORDONED, gpu(1)], kernels))
    assert [(type(a), a.kernel_id) for a in plan.actions] == [(Reclaim, "old"), (Migrate, "a")]
    assert "must leave G0" in plan.actions[0].reason


def test_without_room_the_state_is_saved_and_the_reason_said():
    kernels = [bound("a", "G0", 400), bound("b", "G1", 400, busy=True)]
    (snapshot,) = decide(view([CORDONED, gpu(1)], kernels)).actions
    assert isinstance(snapshot, TakeSnapshot)
    assert "no other GPU has room for its 400 MiB yet" in snapshot.reason
    kernels[0] = replace(kernels[0], last_snapshot_s=NOW - 10)
    assert decide(view([CORDONED, gpu(1)], kernels)).actions == ()


def test_who_must_not_be_suspended_now_is_saved_not_moved():
    keeps = bound("a", "G0", 100, keep_reason="a thread works on its tensors")
    (snapshot,) = decide(view([CORDONED, gpu(1)], [keeps])).actions
    assert "a thread works on its tensors" in snapshot.reason


def test_who_cannot_be_moved_for_want_of_an_agent_is_named():
    (cordon,) = decide(
        view([FAILING, gpu(1)], [bound("julia", "G0", 100, has_agent=False)])
    ).actions
    assert isinstance(cordon, Cordon)
    assert "without the agent julia cannot be moved" in cordon.reason


def test_an_unused_reservation_on_a_failing_gpu_ends():
    held = lease("r", "G0", 100, LeaseState.RESERVED, expires_s=NOW + 20)
    assert kinds(decide(view([CORDONED, gpu(1)], [KernelView("r", held)]))) == ["Release"]


def test_a_claim_waits_for_the_move_of_its_kernel_and_is_then_granted_there():
    kernel = waiting(suspended("a", "G0", 300, movable=True))
    plan = decide(view([CORDONED, gpu(1)], [kernel], [claim("a", 300)]))
    assert kinds(plan) == ["Migrate", "Queue"]
    assert of(plan, Queue)[0].reason == "a moves to G1 first"
    there = replace(kernel, lease=replace(kernel.lease, gpu_uuid="G1"))
    plan = decide(view([CORDONED, gpu(1)], [there], [claim("a", 300)]))
    assert [b.gpu_uuid for b in of(plan, Bind)] == ["G1"]


def test_a_cell_that_waits_in_a_kernel_that_cannot_move_runs_where_its_state_is():
    kernel = waiting(suspended("a", "G0", 300))
    plan = decide(view([CORDONED, gpu(1)], [kernel], [claim("a", 300)]))
    assert [b.gpu_uuid for b in of(plan, Bind)] == ["G0"]
    lost = gpu(0, lost=True, cordoned=True)
    plan = decide(view([lost, gpu(1)], [kernel], [claim("a", 300)]))
    assert kinds(plan) == ["Refuse"]
    assert "G0 is lost" in of(plan, Refuse)[0].reason


@pytest.mark.parametrize(("last_s", "expected"), [(None, 1), (NOW - 301, 1), (NOW - 299, 0)])
def test_a_warning_is_answered_by_a_snapshot_now_and_then(last_s, expected):
    kernels = [bound("a", "G0", 100, last_snapshot_s=last_s)]
    plan = decide(view([gpu(0, risk=RiskLevel.WARNING)], kernels))
    assert kinds(plan) == ["TakeSnapshot"] * expected


def test_what_one_move_will_need_is_not_promised_to_the_next():
    kernels = [bound("a", "G0", 300, last_used_s=10.0), bound("b", "G0", 200, last_used_s=20.0)]
    plan = decide(view([CORDONED, gpu(1, 400)], kernels))
    assert [(type(a), a.kernel_id) for a in plan.actions] == [(Migrate, "a"), (TakeSnapshot, "b")]
    claims = [claim("new", 200)]
    plan = decide(view([CORDONED, gpu(1, 400)], kernels[:1], claims))
    assert kinds(plan) == ["Migrate", "Queue"]


def test_no_more_kernels_leave_at_once_than_allowed():
    idle = [bound(name, "G0", 50) for name in "abc"]
    one = replace(view([FAILING, gpu(1)], idle).settings, max_moves=1)
    plan = decide(replace(view([FAILING, gpu(1)], idle), settings=one))
    assert kinds(plan) == ["Cordon", "Migrate"]
    under_way = replace(idle[0], migrating=True, target_gpu_uuid="G1", target_bytes=50 * MIB)
    later = replace(view([CORDONED, gpu(1)], [under_way, *idle[1:]]), settings=one)
    assert kinds(decide(later)) == []
