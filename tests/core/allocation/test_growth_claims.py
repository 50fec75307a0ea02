"""Claims of cells that run on: granted at once, or refused, and in nobody's way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, gpu, kinds, of, suspended, view, waiting

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, Rung
from jupyter_gpu_predict.core.plans import Bind, Prebind, Queue, Reclaim, Refuse

RUNS = bound("runs", "G0", 100, busy=True)
NEW = KernelView("new", None, busy=True, waiting=True)


def growth(size: int, **changes):
    return claim("runs", size, origin="growth", **changes)


def test_it_grows_into_what_nobody_holds():
    (bind,) = decide(view([gpu(0)], [RUNS], [growth(400)])).actions
    assert isinstance(bind, Bind)
    assert (bind.kernel_id, bind.bytes, bind.claim_id) == ("runs", 400 * MIB, "c-runs")


def test_an_idle_neighbour_makes_room():
    plan = decide(view([gpu(0)], [RUNS, bound("idle", "G0", 300)], [growth(400)]))
    assert kinds(plan) == ["Reclaim", "Bind"]
    assert of(plan, Reclaim)[0].kernel_id == "idle"


@pytest.mark.parametrize(
    "neighbour",
    [
        bound("other", "G0", 300, busy=True),
        bound("other", "G0", 300, pinned=True),
        bound("other", "G0", 300, last_used_s=NOW - 1),
        bound("other", "G0", 300, priority=1),
    ],
    ids=["at work", "pinned", "in its grace period", "of higher priority"],
)
def test_without_room_it_is_refused_at_once(neighbour):
    plan = decide(view([gpu(0)], [RUNS, neighbour], [growth(400)]))
    (refuse,) = plan.actions
    assert isinstance(refuse, Refuse)
    assert refuse.claim_id == "c-runs"


def test_it_takes_nothing_from_a_cell_that_waits_and_holds_none_up():
    full = bound("full", "G0", 300, busy=True)
    plan = decide(view([gpu(0)], [RUNS, full, NEW], [growth(400, made_s=800.0), claim("new", 100)]))
    assert [type(a) for a in plan.actions] == [Refuse, Bind]
    earlier = claim("new", 300, made_s=800.0)
    plan = decide(view([gpu(0)], [RUNS, full, NEW], [earlier, growth(150)]))
    assert [type(a) for a in plan.actions] == [Refuse, Queue]


def test_it_never_halts_a_burst_or_moves():
    long = bound("long", "G0", 300, busy=True, attained_s=9000.0, why_not_preempt=None)
    settings = {"preempt": True, "preempt_min_s": 1.0}
    plan = decide(view([gpu(0), gpu(1)], [RUNS, long], [growth(400)], **settings))
    assert [type(a) for a in plan.actions] == [Refuse]
    movable = replace(RUNS, movable=True)
    plan = decide(view([gpu(0), gpu(1)], [movable, long], [growth(400)], **settings))
    assert [type(a) for a in plan.actions] == [Refuse]


def test_while_memory_comes_free_it_is_not_answered():
    going = bound("going", "G0", 300, migrating=True)
    assert not decide(view([gpu(0)], [RUNS, going], [growth(400)])).actions


def test_what_a_process_was_started_without_is_refused_with_the_reason():
    limited = waiting(bound("a", "G0", 200, limit_bytes=300 * MIB))
    (bind,) = decide(view([gpu(0)], [limited], [claim("a", 300)])).actions
    assert isinstance(bind, Bind)
    (refuse,) = decide(view([gpu(0)], [limited], [claim("a", 301)])).actions
    assert isinstance(refuse, Refuse)
    assert "(MPS)" in refuse.reason
    assert "301 MiB" in refuse.reason
    assert "300 MiB" in refuse.reason
    assert "restart" in refuse.reason


def held_by_driver(**changes):
    return suspended(
        "a", "G0", 300, checkpointed=True, suspend_by=None, restore_cost_s=1.0, **changes
    )


def test_a_kernel_that_just_failed_to_come_back_is_not_brought_back_nor_made_room_for():
    idle = bound("idle", "G0", 400, suspend_by=Rung.IN_PLACE)
    paused = waiting(held_by_driver(no_resume_before_s=NOW + 8.0))
    plan = decide(view([gpu(0)], [paused, idle, NEW], [claim("a", 300), claim("new", 50)]))
    assert [type(a) for a in plan.actions] == [Bind, Queue]
    queue = of(plan, Queue)[0]
    assert queue.expected_wait_s == 9.0
    assert "tried again in 8 s" in queue.reason
    over = waiting(held_by_driver(no_resume_before_s=NOW))
    plan = decide(view([gpu(0)], [over, idle], [claim("a", 300)]))
    assert kinds(plan) == ["Reclaim", "Bind"]


def test_nor_is_it_ahead_of_use():
    ahead = held_by_driver(queued_runs=1)
    assert of(decide(view([gpu(0)], [ahead])), Prebind)
    assert not of(decide(view([gpu(0)], [replace(ahead, no_resume_before_s=NOW + 8)])), Prebind)
