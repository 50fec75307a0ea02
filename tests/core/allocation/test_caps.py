"""No two kernels may take the same memory of a GPU."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.allocation.caps import Share, caps, in_order

GPU = 1000

sizes = st.integers(0, 400)
all_shares = st.lists(
    st.builds(Share, st.sampled_from("abcdef"), sizes, sizes, st.booleans()),
    unique_by=lambda s: s.kernel_id,
    max_size=6,
)


@given(all_shares, st.integers(-100, GPU))
def test_the_sum_is_all_there_is_and_never_more(shares: list[Share], free: int) -> None:
    found = caps(free, shares)
    used = sum(max(s.held_bytes, s.used_bytes) for s in shares)
    assert found.keys() == {s.kernel_id for s in shares}
    assert sum(found.values()) == (max(free, used) if shares else 0)
    for share in shares:
        assert found[share.kernel_id] >= max(share.held_bytes, share.used_bytes)


@given(all_shares, st.integers(0, GPU))
def test_what_nobody_holds_goes_to_those_that_run(shares: list[Share], free: int) -> None:
    found = caps(free, shares)
    extra = {s.kernel_id: found[s.kernel_id] - max(s.held_bytes, s.used_bytes) for s in shares}
    running = [extra[s.kernel_id] for s in shares if s.running]
    idle = [extra[s.kernel_id] for s in shares if not s.running]
    takers = running or idle
    assert not takers or max(takers) - min(takers) <= 1
    assert not (running and any(idle))


def test_who_runs_alone_may_take_all() -> None:
    found = caps(GPU, [Share("a", 100, running=True), Share("b", 300)])
    assert found == {"a": 700, "b": 300}


def test_none_on_the_gpu() -> None:
    assert caps(GPU, []) == {}


@given(all_shares, all_shares, st.integers(0, GPU))
def test_the_sum_stays_within_the_gpu_on_the_way(
    before: list[Share], after: list[Share], free: int
) -> None:
    told = caps(free, before)
    # Who has gone has no cap any more; who is new was told none.
    kept = {s.kernel_id for s in after}
    told = {k: cap for k, cap in told.items() if k in kept}
    wanted = caps(free, after)
    most = max(sum(told.values()), sum(wanted.values()))
    in_force = dict(told)
    for kernel_id, cap in in_order(told, wanted):
        in_force[kernel_id] = cap
        assert sum(in_force.values()) <= most
    assert in_force == wanted


def test_what_was_told_is_not_told_again() -> None:
    assert in_order({"a": 5, "b": 7}, {"a": 5, "b": 6}) == [("b", 6)]
