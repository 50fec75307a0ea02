from __future__ import annotations

from dataclasses import replace

from allocation_cluster import bound, claim, gpu, kinds, of, view

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, RiskLevel
from jupyter_gpu_predict.core.plans import Migrate

OLD = {"duty": 0.6, "age_s": 600.0, "movable": True}


def crowd(**changes):
    return [
        bound("a", "G0", 100, **OLD | changes),
        bound("b", "G0", 200, **OLD | changes),
    ]


def test_the_smallest_idle_kernel_leaves_a_crowded_gpu_for_a_free_one():
    plan = decide(view([gpu(0), gpu(1)], crowd()))
    (move,) = of(plan, Migrate)
    assert (move.kernel_id, move.target_gpu_uuid, move.bytes) == ("a", "G1", 100 * MIB)
    assert "120%" in move.reason


def test_afterwards_nobody_is_sent_back():
    kernels = [bound("a", "G1", 100, **OLD), bound("b", "G0", 200, **OLD)]
    assert kinds(decide(view([gpu(0), gpu(1)], kernels))) == []


def test_one_busy_kernel_alone_is_no_crowd_that_moving_would_help():
    alone = [bound("a", "G0", 100, **OLD | {"duty": 0.95})]
    assert kinds(decide(view([gpu(0), gpu(1)], alone))) == []


def test_who_stays():
    for changes in (
        {"duty": 0.4},
        {"duty": None},
        {"age_s": 60.0},
        {"movable": False},
        {"pinned": True},
        {"busy": True},
        {"keep_reason": "a thread is at work"},
        {"last_used_s": 999.5},
        {"queued_runs": 1},
    ):
        for grace_s in (0.0, 5.0):
            crowded = view([gpu(0), gpu(1)], crowd(**changes), grace_period_s=grace_s)
            assert not of(decide(crowded), Migrate), changes


def test_no_move_to_a_gpu_that_is_full_crowded_cordoned_or_less_sound():
    third = bound("c", "G1", 100, **OLD)
    for target, kernels in (
        (gpu(1, 50), crowd()),
        (gpu(1), [*crowd(), third]),
        (gpu(1, cordoned=True), crowd()),
        (gpu(1, risk=RiskLevel.WARNING), crowd()),
    ):
        assert not of(decide(view([gpu(0), target], kernels)), Migrate)


def test_nothing_moves_while_another_move_is_under_way():
    first, second = crowd()
    moving = replace(first, migrating=True, target_gpu_uuid="G1", target_bytes=100 * MIB)
    third = bound("c", "G0", 100, **OLD)
    assert not of(decide(view([gpu(0), gpu(1)], [moving, second, third])), Migrate)


def test_a_claim_that_waits_comes_first():
    waits = claim("c", 600)
    kernels = [*crowd(pinned=True), bound("c", "G2", 0)]
    plan = decide(
        view([gpu(0), gpu(1, 300), gpu(2, 700, foreign_bytes=200 * MIB)], kernels, [waits])
    )
    assert not of(plan, Migrate)
