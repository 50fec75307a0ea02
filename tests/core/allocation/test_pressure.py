from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, gpu, kinds, lease, of, view, waiting

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState
from jupyter_gpu_predict.core.plans import Reclaim, Release, Resize


def reserved(kernel_id: str, *, expires_s: float, suspended_mib: int = 0, **changes) -> KernelView:
    held = lease(kernel_id, "G0", 300, LeaseState.RESERVED, expires_s=expires_s)
    return KernelView(kernel_id, held, 0, suspended_mib * MIB, last_used_s=10.0, **changes)


def test_a_calm_cluster_is_left_alone():
    kernels = [bound("a", "G0", 500, used=10), reserved("r", expires_s=NOW + 1)]
    assert decide(view([gpu(0), gpu(1)], kernels[:1])).actions == ()
    assert decide(view([gpu(0)], kernels[1:])).actions == ()


def test_an_expired_reservation_ends():
    (release,) = decide(view([gpu(0)], [reserved("r", expires_s=NOW - 2)])).actions
    assert isinstance(release, Release)
    assert release.reason == "End the reservation of 300 MiB for r: it ran out 2 s ago, unused"


def test_an_expired_reservation_with_state_is_suspended_again():
    (reclaim,) = decide(view([gpu(0)], [reserved("r", expires_s=NOW, suspended_mib=50)])).actions
    assert isinstance(reclaim, Reclaim)


@pytest.mark.parametrize("changes", [{"busy": True}, {"suspend_by": None}])
def test_state_of_an_expired_reservation_is_not_taken_at_work(changes):
    plan = decide(view([gpu(0)], [reserved("r", expires_s=NOW, suspended_mib=50, **changes)]))
    assert not of(plan, Reclaim)
    assert not of(plan, Release)


def test_an_expired_reservation_still_serves_its_own_claim():
    plan = decide(view([gpu(0)], [waiting(reserved("r", expires_s=NOW - 2))], [claim("r", 300)]))
    assert kinds(plan) == ["Bind"]


def test_a_lease_follows_what_its_kernel_really_uses():
    (resize,) = decide(view([gpu(0)], [bound("a", "G0", 100, used=150, busy=True)])).actions
    assert (type(resize), resize.bytes) == (Resize, 150 * MIB)


def test_growth_is_first_met_from_slack_then_by_the_least_recently_used():
    kernels = [
        bound("grown", "G0", 200, used=300, busy=True),
        bound("roomy", "G0", 200, used=100, last_used_s=1.0),
        bound("old", "G0", 112, last_used_s=50.0),
    ]
    plan = decide(view([gpu(0)], kernels))
    assert [(a.kernel_id, a.bytes // MIB) for a in plan.actions] == [("roomy", 100), ("grown", 300)]
    assert "G0 is over by 100 MiB (grown grew)" in plan.actions[0].reason

    kernels[1] = bound("roomy", "G0", 200, last_used_s=60.0)
    plan = decide(view([gpu(0)], kernels))
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["old"]
    assert plan.actions[0].for_kernel_id == "grown"


def test_what_cannot_be_relieved_wholly_is_relieved_as_far_as_possible():
    kernels = [
        bound("pinned", "G0", 400, pinned=True),
        bound("fresh", "G0", 100, last_used_s=NOW - 1),
        bound("idle", "G0", 12),
    ]
    plan = decide(view([gpu(0, foreign_bytes=200 * MIB)], kernels))
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["idle"]
    assert "others use it" in plan.actions[0].reason


def test_priorities_do_not_shield_from_overcommitment():
    kernels = [bound("vip", "G0", 400, priority=1)]
    plan = decide(view([gpu(0, foreign_bytes=200 * MIB)], kernels))
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["vip"]


def test_what_a_migration_will_need_at_its_target_counts():
    moving = replace(
        bound("m", "G1", 300), migrating=True, target_gpu_uuid="G0", target_bytes=300 * MIB
    )
    plan = decide(view([gpu(0), gpu(1)], [moving, bound("idle", "G0", 300)]))
    assert [r.kernel_id for r in of(plan, Reclaim)] == ["idle"]
