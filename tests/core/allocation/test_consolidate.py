"""GPUs that stand empty stay so where that costs nobody anything."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from allocation_cluster import NOW, Cluster, bound, claim, forecast, gpu, kinds, of, suspended, view
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView, PolicySettings, RiskLevel, Rung
from jupyter_gpu_predict.core.plans import Bind, Migrate, Prebind


def quiet(kernel_id: str, place: str, size: int = 100, **changes) -> KernelView:
    """An old kernel, idle for a quarter of an hour, that is not expected back soon."""
    high = changes.pop("high", 0)
    defaults = {
        "duty": 0.1,
        "age_s": 2_000.0,
        "movable": True,
        "forecast": forecast(kernel_id, 0.05, high),
    }
    return bound(kernel_id, place, size, **defaults | changes)


def consolidated(gpus, kernels, claims=(), **changes):
    return decide(view(gpus, kernels, claims, consolidate=True, **changes))


def test_a_kernel_alone_on_a_gpu_goes_where_another_is():
    kernels = [quiet("a", "G0"), quiet("b", "G1", 200)]
    (move,) = consolidated([gpu(0), gpu(1), gpu(2)], kernels).actions
    assert (move.kernel_id, move.target_gpu_uuid, move.bytes) == ("a", "G1", 100 * MIB)
    assert move.reason == (
        "Move a (100 MiB) to G1 and leave G0 empty: a is alone there, idle 900 s, "
        "P(needed in 300 s) = 0.05"
    )
    assert decide(view([gpu(0), gpu(1), gpu(2)], kernels)).actions == (), "off by default"


@pytest.mark.parametrize(
    "changes",
    [
        {"forecast": forecast("a", 0.2)},
        {"forecast": None},
        {"high": 400},
        {"duty": None},
        {"duty": 0.4},
        {"last_used_s": NOW - 599.0},
        {"age_s": 100.0},
        {"movable": False},
        {"pinned": True},
        {"keep_reason": "a thread is at work"},
        {"queued_runs": 1},
        {"busy": True},
    ],
    ids=str,
)
def test_who_stays(changes):
    kernels = [quiet("a", "G0", **changes), quiet("b", "G1", 200, movable=False)]
    assert not of(consolidated([gpu(0), gpu(1)], kernels), Migrate)


def test_where_nobody_goes():
    alone = quiet("a", "G0")
    for target, kernels in (
        (gpu(1), []),
        (gpu(1), [suspended("b", "G1", 100)]),
        (gpu(1, 250), [quiet("b", "G1", 200, movable=False)]),
        (gpu(1), [quiet("b", "G1", 200, movable=False, high=450)]),
        (gpu(1), [bound("b", "G1", 100), suspended("c", "G1", 350)]),
        (gpu(1), [quiet("b", "G1", 200, movable=False, duty=0.36)]),
        (gpu(1, cordoned=True), [quiet("b", "G1", movable=False)]),
        (gpu(1, risk=RiskLevel.WARNING), [quiet("b", "G1", movable=False)]),
    ):
        plan = consolidated([gpu(0), target], [alone, *kernels])
        assert not of(plan, Migrate), (target, kernels)


def test_a_gpu_that_others_come_back_to_is_not_emptied():
    kernels = [quiet("a", "G0"), suspended("c", "G0", 50), quiet("b", "G1", 200)]
    plan = consolidated([gpu(0), gpu(1)], [*kernels[:2], replace(kernels[2], movable=False)])
    assert not of(plan, Migrate)


def test_nothing_moves_while_a_claim_waits_or_another_moves():
    kernels = [quiet("a", "G0"), quiet("b", "G1", 200)]
    waits = claim("c", 500, affinity="G2")
    busy = bound("d", "G2", 500, busy=True)
    assert kinds(consolidated([gpu(0), gpu(1), gpu(2)], [*kernels, busy], [waits])) == ["Queue"]
    moving = replace(busy, migrating=True, target_gpu_uuid="G3", target_bytes=500 * MIB)
    assert not of(consolidated([gpu(i) for i in range(4)], [*kernels, moving]), Migrate)


def test_new_claims_and_reservations_leave_empty_gpus_empty():
    used = quiet("b", "G1", duty=0.3, pinned=True)
    new = KernelView("new", None, busy=True, waiting=True, duty=0.2)
    gpus = [gpu(0), gpu(1)]
    for asked, place in ((100, "G1"), (450, "G0")):
        (bind,) = consolidated(gpus, [used, new], [claim("new", asked)]).actions
        assert (type(bind), bind.gpu_uuid) == (Bind, place)
    crowded = replace(new, duty=0.7)
    assert consolidated(gpus, [used, crowded], [claim("new", 100)]).actions[0].gpu_uuid == "G0"
    (bind,) = decide(view(gpus, [used, new], [claim("new", 100)])).actions
    assert bind.gpu_uuid == "G0", "without it, where there is most room"
    soon = KernelView("new", None, duty=0.2, forecast=forecast("new", 0.9, 100))
    (prebind,) = consolidated(gpus, [used, soon]).actions
    assert (type(prebind), prebind.gpu_uuid) == (Prebind, "G1")


def test_what_the_driver_holds_on_a_failing_gpu_goes_to_one_of_its_kind():
    """And it needs nothing of the failing one: its state is in host memory."""
    away = suspended("a", "G0", 300, checkpointed=True, movable=True, has_agent=False)
    failing = gpu(0, risk=RiskLevel.CRITICAL, cordoned=True)
    (move,) = decide(view([failing, gpu(1)], [away])).actions
    assert (type(move), move.target_gpu_uuid, move.rung) == (
        Migrate,
        "G1",
        Rung.DRIVER_CHECKPOINT,
    )
    assert not of(decide(view([failing, replace(gpu(1), name="another")], [away])), Migrate)
    fixed = replace(away, movable=False)
    assert not of(decide(view([failing, gpu(1)], [fixed])), Migrate)


@st.composite
def idle_clusters(draw) -> Cluster:
    """Idle kernels with fixed duties, anywhere, within capacity."""
    count = draw(st.integers(2, 5))
    cluster = Cluster([gpu(i) for i in range(count)], PolicySettings(consolidate=True))
    free = [512] * count
    for i in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, count - 1))
        size = min(free[place], draw(st.sampled_from([20, 60, 120, 300])))
        if size == 0:
            continue
        free[place] -= size
        k = quiet(
            f"k{i}",
            f"G{place}",
            size,
            duty=draw(st.sampled_from([0.0, 0.05, 0.2, 0.4, 0.6])),
            pinned=draw(st.integers(0, 4)) == 0,
            high=draw(st.sampled_from([0, 0, 50, 200])),
        )
        k = replace(k, lease=replace(k.lease, epoch=cluster.next_epoch()))
        cluster.kernels[k.kernel_id] = k
    return cluster


@given(idle_clusters())
@settings(max_examples=60, deadline=None)
def test_spreading_and_consolidating_come_to_rest_and_send_nobody_back(cluster):
    """With duties as they are, each kernel leaves each GPU at most once."""
    been: dict[str, list[str]] = defaultdict(list)
    for _ in range(40):
        moves = of(cluster.step(), Migrate)
        if not moves:
            break
        (move,) = moves
        source = cluster.kernels[move.kernel_id].lease.gpu_uuid
        assert move.target_gpu_uuid not in been[move.kernel_id], "sent back"
        been[move.kernel_id].append(source)
        cluster.end_migration(move.kernel_id, commit=True)
        cluster.now_s += 1_000.0
    else:
        raise AssertionError("no rest")
