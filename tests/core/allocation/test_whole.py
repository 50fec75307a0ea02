"""GPUs that are not shared: MIG slices."""

from __future__ import annotations

from dataclasses import replace

from allocation_cluster import (
    NOW,
    bound,
    claim,
    forecast,
    gpu,
    kinds,
    of,
    suspended,
    view,
    waiting,
)

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import MIB, KernelView
from jupyter_gpu_predict.core.plans import Bind, Migrate, Prebind, Queue, Reclaim, Refuse


def part(index: int, total: int = 512):
    return gpu(index, total, whole=True)


def fresh(kernel_id: str) -> KernelView:
    return waiting(KernelView(kernel_id, None))


def test_a_claim_takes_the_whole_slice() -> None:
    (bind,) = of(decide(view([part(0)], [fresh("a")], [claim("a", 100)])), Bind)
    assert bind.bytes == 512 * MIB
    assert "slices are not shared" in bind.reason


def test_two_claims_never_share_a_slice() -> None:
    kernels, claims = [fresh("a"), fresh("b"), fresh("c")], [claim(k, 10) for k in "abc"]
    plan = decide(view([part(0), part(1)], kernels, claims))
    assert {b.gpu_uuid for b in of(plan, Bind)} == {"G0", "G1"}
    assert len(of(plan, Queue)) == 1


def test_a_small_lease_on_a_slice_keeps_others_out() -> None:
    busy = replace(bound("a", "G0", 50), busy=True, last_used_s=NOW)
    plan = decide(view([part(0)], [busy, fresh("b")], [claim("b", 10)]))
    assert kinds(plan) == ["Queue"]


def test_an_idle_kernel_gives_its_slice_and_not_a_piece_of_it() -> None:
    idle = bound("a", "G0", 512, used=50)
    plan = decide(view([part(0)], [idle, fresh("b")], [claim("b", 10)]))
    assert [a.kernel_id for a in of(plan, Reclaim)] == ["a"]
    assert [b.bytes for b in of(plan, Bind)] == [512 * MIB]
    # The same on a GPU that is shared: what is not used is enough.
    assert not of(decide(view([gpu(0)], [idle, fresh("b")], [claim("b", 10)])), Reclaim)


def test_what_stays_of_a_suspended_kernel_is_left_to_it() -> None:
    halted = suspended("a", "G0", 100)
    assert halted.lease is not None
    stays = replace(halted, lease=replace(halted.lease, resident_bytes=30 * MIB))
    (bind,) = of(decide(view([part(0)], [stays, fresh("b")], [claim("b", 10)])), Bind)
    assert bind.bytes == 482 * MIB


def test_a_kernel_that_grows_beyond_its_slice_is_refused_with_the_largest_there_is() -> None:
    held = waiting(bound("a", "G0", 512, used=500))
    (refused,) = of(decide(view([part(0)], [held], [claim("a", 600)])), Refuse)
    assert "migrate it first" in refused.reason
    (refused,) = of(decide(view([part(0), part(1)], [fresh("b")], [claim("b", 600)])), Refuse)
    assert "512 MiB" in refused.reason


def test_a_slice_is_reserved_ahead_of_use_as_a_whole() -> None:
    idle = KernelView("a", None, forecast=forecast("a", 0.9, 100), last_used_s=900.0)
    (ahead,) = of(decide(view([part(0)], [idle])), Prebind)
    assert ahead.bytes == 512 * MIB
    used = replace(bound("b", "G0", 10), busy=True, last_used_s=NOW)
    assert not of(decide(view([part(0)], [idle, used])), Prebind)


def test_a_failing_slice_is_left_for_a_free_one() -> None:
    failing, here = replace(part(0), lost=True), bound("a", "G0", 512, used=50, movable=True)
    taken = replace(bound("b", "G1", 10), busy=True, last_used_s=NOW)
    (move,) = of(decide(view([failing, part(1), part(2)], [here, taken])), Migrate)
    assert (move.target_gpu_uuid, move.bytes) == ("G2", 512 * MIB)
