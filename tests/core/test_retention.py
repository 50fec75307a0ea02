"""Which automatic snapshots are given up, whatever there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.core.retention import Saved, latest, owner_of, surplus

OWNERS = st.sampled_from(["a.ipynb", "b.ipynb", "kernel-c"])
CHUNKS = st.dictionaries(st.sampled_from("pqrstuvw"), st.just(10), max_size=4)
SNAPSHOTS = st.lists(st.tuples(OWNERS, st.floats(0, 1e9), st.booleans(), CHUNKS), max_size=14).map(
    lambda rows: [Saved(f"id-{i}", *row) for i, row in enumerate(rows)]
)


def held(saved: list[Saved]) -> int:
    """Bytes that automatic snapshots hold and named ones do not."""
    named = {c for s in saved if not s.automatic for c in s.chunks}
    own = {c: n for s in saved if s.automatic for c, n in s.chunks.items() if c not in named}
    return sum(own.values())


def newest(saved: list[Saved], owner: str) -> Saved | None:
    own = [s for s in saved if s.automatic and s.owner == owner]
    return max(own, key=lambda s: (s.created_s, s.snapshot_id), default=None)


@given(
    SNAPSHOTS,
    st.integers(1, 4),
    st.integers(0, 90),
    st.sets(OWNERS),
    st.sets(st.integers(0, 13).map("id-{}".format), max_size=3),
)
def test_bounds_hold_and_nothing_is_lost_that_must_stay(
    saved: list[Saved], keep: int, budget: int, running: set[str], spared: set[str]
) -> None:
    gone = surplus(saved, keep=keep, budget_bytes=budget, running=running, spared=spared)
    assert len(gone) == len(set(gone))
    assert not spared & set(gone)
    left = [s for s in saved if s.snapshot_id not in gone]
    assert [s for s in left if not s.automatic] == [s for s in saved if not s.automatic]
    for owner in {s.owner for s in saved}:
        best = newest(saved, owner)
        own = [s for s in left if s.owner == owner and s.automatic]
        if best is not None and owner in running:
            assert best in own
        if own:
            assert newest(own, owner) == newest(left, owner)
            assert len([s for s in own if s.snapshot_id not in spared]) <= keep
    if held(left) > budget:
        # Only what must stay is left.
        assert all(
            s.snapshot_id in spared or (s.owner in running and s == newest(saved, s.owner))
            for s in left
            if s.automatic
        )


@given(SNAPSHOTS, st.integers(1, 4), st.integers(0, 90))
def test_nothing_goes_without_need(saved: list[Saved], keep: int, budget: int) -> None:
    few = all(
        sum(s.automatic and s.owner == owner for s in saved) <= keep
        for owner in {s.owner for s in saved}
    )
    if few and held(saved) <= budget:
        assert surplus(saved, keep=keep, budget_bytes=budget) == []


def test_for_space_the_owner_saved_longest_ago_gives_first_and_old_before_new() -> None:
    saved = [
        Saved("b1", "b", 1.0, True, {"1": 10}),
        Saved("a1", "a", 2.0, True, {"2": 10}),
        Saved("a2", "a", 3.0, True, {"3": 10}),
        Saved("b2", "b", 4.0, True, {"4": 10}),
        Saved("mine", "a", 0.0, False, {"5": 1000}),
    ]
    for budget, expected in (
        (40, []),
        (39, ["a1"]),
        (29, ["a1", "b1"]),
        (19, ["a1", "a2", "b1"]),
        (0, ["a1", "a2", "b1"]),
    ):
        gone = surplus(saved, keep=3, budget_bytes=budget, running={"b"})
        assert sorted(gone) == expected


def test_chunks_shared_with_a_named_snapshot_cost_nothing() -> None:
    saved = [
        Saved("mine", "a", 1.0, False, {"x": 500}),
        Saved("auto", "a", 2.0, True, {"x": 500, "y": 5}),
    ]
    assert surplus(saved, keep=1, budget_bytes=5) == []
    assert surplus(saved, keep=1, budget_bytes=4) == ["auto"]


def test_the_latest_is_the_kernels_own_or_else_its_notebooks() -> None:
    class Line:
        def __init__(self, kernel_id: str, notebook: str | None, created_s: float) -> None:
            self.kernel_id, self.notebook, self.created_s = kernel_id, notebook, created_s

    lines = [Line("k1", "n", 1.0), Line("k2", "n", 3.0), Line("k1", "n", 2.0), Line("x", None, 9.0)]
    assert latest(lines, "k1", "n") is lines[2]
    assert latest(lines, "new", "n") is lines[1]
    assert latest(lines, "new", None) is None
    assert latest([], "k1", "n") is None
    assert latest(lines, "k1", "n", before_s=1.5) is lines[0]
    assert latest(lines, "k1", "n", before_s=0.5) is None
    assert owner_of("n", "k1") == "n"
    assert owner_of(None, "k1") == "k1"
