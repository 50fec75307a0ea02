from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, forecast, gpu, kinds, lease, of, suspended, view

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState
from jupyter_gpu_predict.core.plans import Prebind, Reclaim


def returning(probability: float = 0.8, *, high: int = 0, cost_s: float = 2.0, **changes):
    return suspended(
        "back",
        "G0",
        300,
        restore_cost_s=cost_s,
        forecast=forecast("back", probability, high),
        **changes,
    )


def idle(probability: float, *, cost_s: float = 0.5, **changes):
    return bound(
        "idle",
        "G0",
        400,
        restore_cost_s=cost_s,
        forecast=forecast("idle", probability),
        **changes,
    )


def test_likely_state_comes_back_into_free_memory():
    (prebind,) = decide(view([gpu(0)], [returning()])).actions
    assert (type(prebind), prebind.bytes) == (Prebind, 300 * MIB)
    assert prebind.reason == (
        "Bring 300 MiB of back back to G0 ahead of use (P(needed in 15 s) = 0.80)"
    )


def test_as_much_as_the_forecast_says_and_the_gpu_has():
    (prebind,) = decide(view([gpu(0)], [returning(high=400)])).actions
    assert prebind.bytes == 400 * MIB
    (prebind,) = decide(view([gpu(0)], [returning(high=900)])).actions
    assert prebind.bytes == 512 * MIB


def test_queued_cells_are_a_certainty():
    plan = decide(view([gpu(0)], [suspended("back", "G0", 300, queued_runs=2)]))
    assert kinds(plan) == ["Prebind"]
    assert "2 more cells are queued" in plan.actions[0].reason


@pytest.mark.parametrize(
    "kernel",
    [
        returning(0.4),
        returning(since_s=NOW - 1.0),
        returning(busy=True),
        returning(has_agent=False),
        returning(migrating=True),
        suspended("back", "G0", 300),
    ],
    ids=["unlikely", "just reclaimed", "busy", "no agent", "at work", "no forecast"],
)
def test_what_is_not_brought_back(kernel):
    for grace_s in (0.0, 5.0):
        assert decide(view([gpu(0)], [kernel], grace_period_s=grace_s)).actions == ()


def test_no_prebind_when_switched_off_or_on_a_closed_gpu():
    assert decide(view([gpu(0)], [returning()], prebind=False)).actions == ()
    assert decide(view([gpu(0, cordoned=True)], [returning()])).actions == ()


def test_no_prebind_where_a_claim_waits():
    kernels = [returning(), bound("busy", "G0", 200, busy=True)]
    plan = decide(view([gpu(0)], kernels, [claim("new", 400)]))
    assert kinds(plan) == ["Queue"]


def test_a_less_likely_idle_kernel_makes_way_when_that_pays():
    plan = decide(view([gpu(0)], [returning(0.9), idle(0.1)]))
    assert kinds(plan) == ["Reclaim", "Prebind"]
    assert "1.80 s to gain, 0.10 s to lose" in plan.actions[0].reason


@pytest.mark.parametrize(
    "victim",
    [
        idle(0.9),
        idle(0.85, cost_s=0.0),
        idle(0.5, cost_s=2.0),
        idle(0.1, pinned=True),
        idle(0.1, busy=True),
        idle(0.1, last_used_s=NOW - 1.0),
        idle(0.1, priority=1),
    ],
    ids=["likelier", "likelier, free", "dear", "pinned", "busy", "in grace", "of priority"],
)
def test_who_does_not_make_way(victim):
    for grace_s in (0.0, 5.0):
        both = [returning(0.8), victim]
        assert decide(view([gpu(0)], both, grace_period_s=grace_s)).actions == ()


def test_without_a_grace_period_who_has_just_run_makes_way_to_a_claim_alone():
    fresh = idle(0.1, last_used_s=NOW - 1.0)
    plan = decide(view([gpu(0)], [fresh], [claim("new", 400)], grace_period_s=0.0))
    assert kinds(plan) == ["Reclaim", "Bind"]


def test_two_kernels_do_not_push_each_other_out_in_turn():
    plan = decide(view([gpu(0)], [returning(0.9), idle(0.89, cost_s=0.1)]))
    assert kinds(plan) == ["Reclaim", "Prebind"]
    # As it is right after that plan: the one brought back is less than a grace period old.
    now_back = replace(
        bound("back", "G0", 300, restore_cost_s=2.0, forecast=forecast("back", 0.9)),
        lease=lease("back", "G0", 300, since_s=NOW),
    )
    now_out = suspended("idle", "G0", 400, since_s=NOW, forecast=forecast("idle", 0.99))
    for grace_s in (0.0, 5.0):
        assert decide(view([gpu(0)], [now_back, now_out], grace_period_s=grace_s)).actions == ()


def test_a_kernel_without_forecast_is_robbed_by_how_long_it_is_idle():
    fresh = bound("idle", "G0", 400, last_used_s=NOW - 30.0, restore_cost_s=2.0)
    old = replace(fresh, last_used_s=NOW - 3000.0)
    assert not of(decide(view([gpu(0)], [returning(0.7), fresh])), Reclaim)
    assert kinds(decide(view([gpu(0)], [returning(0.7), old]))) == ["Reclaim", "Prebind"]


def test_a_new_kernel_about_to_need_memory_gets_a_reservation():
    new = KernelView("new", None, forecast=forecast("new", 0.9, 200))
    (prebind,) = decide(view([gpu(0, 100), gpu(1)], [new])).actions
    assert (prebind.gpu_uuid, prebind.bytes) == ("G1", 200 * MIB)
    assert decide(view([gpu(0, 100)], [new])).actions == (), "no victims for a reservation"
    ended = lease("new", "G1", 200, LeaseState.RELEASED, since_s=NOW - 1.0)
    assert decide(view([gpu(1)], [replace(new, lease=ended)])).actions == (), "just run out"


def test_no_standing_reserve():
    likely = KernelView("new", None, forecast=forecast("new", 0.9, 0))
    assert decide(view([gpu(0)], [likely])).actions == ()


def test_a_forecast_that_is_no_number_reserves_nothing():
    wild = forecast("new", 0.9, 200)
    horizons = tuple(
        replace(h, memory_bytes=replace(h.memory_bytes, high=float("inf"))) for h in wild.horizons
    )
    new = KernelView("new", None, forecast=replace(wild, horizons=horizons))
    assert decide(view([gpu(0)], [new])).actions == ()
