"""What is found without looking at every GPU is what a look at every one of them finds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from allocation_cluster import NOW, bound, claim, forecast, gpu, lease, suspended, view
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.core.allocation.capacity import RISK_RANK, takes_new_leases
from jupyter_gpu_predict.core.allocation.ledger import Ledger
from jupyter_gpu_predict.core.allocation.preempt import Waiter
from jupyter_gpu_predict.core.allocation.steps import Stage, Wish
from jupyter_gpu_predict.core.allocation.targets import Targets
from jupyter_gpu_predict.core.allocation.victims import cheapest, cost_key, room
from jupyter_gpu_predict.core.model import MIB, KernelView, LeaseState, RiskLevel

SIZES = st.sampled_from([0, 50, 100, 150, 300])
USE = st.sampled_from([1, 1, 2])
DUTIES = st.sampled_from([None, 0.0, 0.1, 0.3, 0.5, 0.9])
STATES = st.sampled_from([*[LeaseState.BOUND] * 3, LeaseState.RESERVED, LeaseState.SUSPENDED])


@st.composite
def clusters(draw):
    gpus = [
        gpu(
            draw(st.sampled_from([i, 0])),
            draw(st.sampled_from([512, 1024])),
            risk=draw(st.sampled_from([RiskLevel.NONE, RiskLevel.NONE, RiskLevel.WARNING])),
            cordoned=draw(st.integers(0, 9)) == 0,
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    gpus = [replace(g, uuid=f"U{i}") for i, g in enumerate(gpus)]
    kernels = [
        _kernel(draw, f"k{i}", f"U{draw(st.integers(0, len(gpus) - 1))}")
        for i in range(draw(st.integers(0, 16)))
    ]
    policy = {"consolidate": draw(st.booleans()), "headroom_bytes": draw(st.sampled_from([0, MIB]))}
    return Ledger(view(gpus, kernels, **policy, preempt=True))


def _kernel(draw, kernel_id: str, uuid: str) -> KernelView:
    size, state, busy = draw(SIZES), draw(STATES), draw(st.booleans())
    gone = state is LeaseState.SUSPENDED
    return KernelView(
        kernel_id,
        lease(kernel_id, uuid, size, state, since_s=draw(st.sampled_from([0.0, NOW - 1.0]))),
        used_bytes=0 if gone or state is LeaseState.RESERVED else size * MIB // draw(USE),
        suspended_bytes=size * MIB if gone else 0,
        busy=busy and state is LeaseState.BOUND,
        pinned=draw(st.integers(0, 7)) == 0,
        priority=draw(st.sampled_from([0, 0, 1])),
        last_used_s=NOW - draw(st.integers(10, 300)),
        restore_cost_s=draw(st.sampled_from([0.5, 1.0])),
        duty=draw(DUTIES),
        forecast=forecast(kernel_id, draw(st.sampled_from([0.2, 0.9]))),
        why_not_preempt=None,
        attained_s=draw(st.sampled_from([30.0, 500.0, 900.0])),
    )


def book_some(data, ledger: Ledger) -> None:
    """Change the picture between two searches: what was remembered must not be believed."""
    for _ in range(data.draw(st.integers(0, 3))):
        uuid = data.draw(st.sampled_from(sorted(ledger.gpus)))
        here = [e for e in ledger.on_gpu(uuid) if e.state is LeaseState.BOUND]
        what = data.draw(st.sampled_from(["reclaim", "bind", "block"]))
        if what == "reclaim" and here:
            ledger.reclaim(here[0], None, "to test")
        elif what == "bind" and ledger.free[uuid] > 0:
            new = ledger.entry(f"new{len(ledger.actions)}")
            ledger.bind(new, ledger.gpus[uuid], ledger.free[uuid] // 2, "c", "to test")
        elif what == "block":
            ledger.block(uuid, claim("other", 1))


@settings(max_examples=150, deadline=None)
@given(clusters(), DUTIES, SIZES, st.data())
def test_the_best_gpu_for_a_claim(ledger, duty, size, data):
    entry = ledger.entry_of(KernelView("claimant", None, duty=duty))
    for _ in range(3):
        fits = [
            g
            for g in ledger.gpus.values()
            if takes_new_leases(g)
            and ledger.free[g.uuid] >= size * MIB
            and (g.uuid not in ledger.blocked or size == 0)
        ]
        expected = min(fits, key=lambda g: suits(ledger, g, duty), default=None)
        assert ledger.open_gpus.best(entry, size * MIB) is expected
        book_some(data, ledger)


def suits(ledger: Ledger, g, duty: float | None) -> tuple:
    """Safe, not crowded, better not woken; then the tightest, or the emptiest by duty."""
    there = [
        e.kernel.duty or 0.0 for e in ledger.on_gpu(g.uuid) if e.state in ("bound", "reserved")
    ]
    crowded = duty is not None and duty + sum(there) > ledger.settings.max_duty
    empty = not any(e.held for e in ledger.on_gpu(g.uuid)) and ledger.arriving[g.uuid] == 0
    wakes = ledger.settings.consolidate and empty
    free = ledger.free[g.uuid]
    return (RISK_RANK[g.risk], crowded, wakes, free if duty is None else -free, g.index)


@settings(max_examples=150, deadline=None)
@given(clusters(), st.integers(1, 600), st.sampled_from(Stage), st.booleans(), st.data())
def test_the_least_disruption(ledger, size, last, patient, data):
    entry = ledger.entry_of(KernelView("claimant", None))
    for place, claimant in enumerate(e for g in ledger.gpus for e in ledger.on_gpu(g)):
        if not claimant.running and data.draw(st.integers(0, 4)) == 0:
            claimant.claim_order = place
    for safest in (True, False):
        wish = Wish(
            entry, size * MIB, 0, order=0, waiter=Waiter(100.0, aged=False), patient=patient
        )
        places = [(g, wish.bytes - ledger.free[g.uuid]) for g in ledger.gpus.values()]
        ways = [
            (g, steps)
            for g, deficit in places
            if (steps := room(ledger, g.uuid, deficit, wish, last=last)) is not None
        ]
        expected = min(ways, key=lambda w: costs(*w, safest=safest), default=None)
        found = cheapest(ledger, wish, places, last, safest=safest)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found[0] is expected[0]
            assert found[1] == expected[1]
        book_some(data, ledger)


def costs(g, steps, *, safest: bool) -> tuple:
    stage, *rest = cost_key(steps)
    return (RISK_RANK[g.risk], stage, *rest) if safest else (stage, RISK_RANK[g.risk], *rest)


def test_a_gpu_that_only_seems_cheap_is_not_taken():
    # Nobody's reservation yields here: that on G0 is fresh, and its kernel about to run.
    fresh = KernelView(
        "fresh",
        lease("fresh", "G0", 256, LeaseState.RESERVED, since_s=NOW - 1.0),
        forecast=forecast("fresh", 0.9),
    )
    kernels = [
        fresh,
        bound("late", "G0", 256, last_used_s=NOW - 50),
        bound("early", "G1", 256, last_used_s=NOW - 500),
        bound("runs", "G1", 256, busy=True),
    ]
    assert _victims(kernels) == ["early"]


def test_the_least_recently_used_counts_wherever_the_view_has_it():
    kernels = [
        bound("late", "G0", 256, last_used_s=NOW - 50),
        bound("early", "G0", 256, last_used_s=NOW - 500),
        bound("between", "G1", 256, last_used_s=NOW - 200),
        bound("runs", "G1", 256, busy=True),
    ]
    assert _victims(kernels) == ["early"]
    assert _victims(kernels[::-1]) == ["early"]


def _victims(kernels: list[KernelView]) -> list[str]:
    ledger = Ledger(view([gpu(0), gpu(1)], kernels))
    wish = Wish(ledger.entry("claimant"), 256 * MIB, 0)
    found = cheapest(ledger, wish, [(g, wish.bytes) for g in ledger.gpus.values()])
    assert found is not None
    return [s.entry.kernel_id for s in found[1]]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.2, 0.5]), st.booleans())),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.3, 0.6]),
    st.booleans(),
)
def test_whether_any_gpu_could_take_a_kernel(rows, size, duty, doubtful):
    def at(risky: bool):
        return gpu(0, risk=RiskLevel.WARNING if risky else RiskLevel.NONE)

    targets = Targets((at(risky), free, there) for free, there, risky in rows)
    fits = any(
        free >= size and there <= duty and (doubtful or not risky) for free, there, risky in rows
    )
    assert targets.has(at(doubtful), size, duty) == fits
    assert targets.least_duty == pytest.approx(
        min((there for _, there, _ in rows), default=math.inf), abs=1e-6
    )


def test_sums_of_duties_follow_what_is_booked():
    ledger = Ledger(
        view(
            [gpu(0), gpu(1)], [bound("a", "G0", 100, duty=0.3), suspended("b", "G0", 100, duty=0.4)]
        )
    )
    assert ledger.duty("G0") == 0.3
    ledger.prebind(ledger.entry("b"), ledger.gpus["G0"], 100 * MIB, "to test")
    assert ledger.duty("G0") == pytest.approx(0.7)
    ledger.reclaim(ledger.entry("a"), None, "to test")
    assert ledger.duty("G0") == 0.4
    assert ledger.duty_sum("G0", ledger.entry("b")) == 0.4
