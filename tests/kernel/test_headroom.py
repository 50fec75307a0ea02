"""When a running cell asks for more memory, and for how much; time is told."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.kernel.gate import Gate, Grant
from jupyter_gpu_predict.kernel.headroom import (
    LOOK_S,
    PAUSE_LIMIT_S,
    Asks,
    Rise,
    _held_bytes,
)

MIB = 1 << 20
GPU = 256 * MIB


def first_ask(asks: Asks, steps: list[int], cap_mib: int = 100) -> tuple[int, int] | None:
    """Return what was held, in MiB, when more was asked for first, and how much was."""
    for look, held in enumerate(steps):
        wanted = asks.wanted(look * LOOK_S, held * MIB, cap_mib * MIB, GPU, grant_s=1.0)
        if wanted is not None:
            return held, wanted // MIB
    return None


@pytest.mark.parametrize(
    ("expected", "steps", "asked"),
    [
        (0, [10, 10, 10, 10], None),
        (0, [10, 60, 60, 60, 60], None),  # a leap is no rate
        (0, [10, 85], (85, 132)),
        (0, [10, 12, 14, 16], None),  # 40 MiB/s would take two seconds to the cap
        (0, [10, 20, 30, 40], (30, 256)),
        (90, [10, 40, 70, 90, 90], None),  # as every time
        (90, [10, 40, 70, 90, 91], (91, 256)),
        (180, [10, 85], (85, 180)),
        (4000, [10, 85], (85, 256)),
    ],
)
def test_it_asks_when_little_is_left_or_soon_will_be(
    expected: int, steps: list[int], asked: tuple[int, int] | None
) -> None:
    assert first_ask(Asks(expected * MIB), steps) == asked


def test_a_refused_ask_comes_later_for_less_and_only_if_the_cell_has_grown() -> None:
    asks = Asks(0)
    now, held, sizes, times = 0.0, 90 * MIB, [], []
    while now < 60.0:
        wanted = asks.wanted(now, held, 100 * MIB, GPU, 1.0)
        if wanted is not None:
            sizes.append(wanted // MIB)
            times.append(now)
            asks.refused(now)
        now += LOOK_S
        held += 1024
    assert sizes[:4] == [132, 116, 108, 108]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[:4] == sorted(gaps[:4])
    assert max(gaps) <= PAUSE_LIMIT_S + 2 * LOOK_S
    stays = Asks(0)
    assert stays.wanted(0.0, 90 * MIB, 100 * MIB, GPU, 1.0) is not None
    stays.refused(0.0)
    assert stays.wanted(1000.0, 90 * MIB, 100 * MIB, GPU, 1.0) is None


@given(
    st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(0, 300), st.integers(1, 256))),
    st.integers(0, 400),
)
def test_what_is_asked_for_is_more_than_there_is_and_no_more_than_the_gpu_has(
    looks: list[tuple[float, int, int]], expected: int
) -> None:
    asks, now = Asks(expected * MIB), 0.0
    for step_s, held, cap in looks:
        now += step_s
        wanted = asks.wanted(now, held * MIB, cap * MIB, GPU, 1.0)
        assert wanted is None or cap * MIB < wanted <= GPU
        if wanted is not None:
            asks.refused(now)


def test_the_rate_is_that_of_the_last_moments() -> None:
    rise = Rise()
    for look in range(100):
        rise.seen(look * 0.1, max(0, look - 80) * MIB)
    assert rise.per_s() == pytest.approx(10 * MIB)
    for look in range(100, 120):
        rise.seen(look * 0.1, 19 * MIB)
    assert rise.per_s() == 0.0


def test_what_the_allocator_can_give_back_is_not_needed() -> None:
    stats = {
        "reserved_bytes.all.current": 100,
        "allocated_bytes.all.peak": 60,
        "inactive_split_bytes.all.current": 10,
    }
    assert _held_bytes(stats) == (70, 100)
    assert _held_bytes({**stats, "reserved_bytes.all.current": 50}) == (50, 50)
    assert _held_bytes({}) == (0, 0)


class Link:
    def __init__(self) -> None:
        self.said: list[Any] = []

    def notify(self, message: Any) -> None:
        self.said.append(message)


def test_an_ask_is_answered_once_and_nothing_waits_for_it() -> None:
    link: Any = Link()
    gate = Gate(link, 60.0)
    answers: list[tuple[str, Grant | None]] = []

    def answered(claim_id: str, grant: Grant | None) -> bool:
        answers.append((claim_id, grant))
        return True

    def ask() -> str:
        return gate.ask(7, answered, priority=1, affinity="GPU", deadline_s=5.0)

    one, two, three = ask(), ask(), ask()
    assert not gate.waiting
    assert [message.origin for message in link.said] == ["growth"] * 3
    grant = Grant("GPU", 7, 1)
    assert gate.grant(one, grant)
    assert gate.refuse(two, "no room")
    gate.withdraw(three, "its cell has ended")
    assert answers == [(one, grant), (two, None)]
    assert link.said[-1].claim_id == three
    assert not any((gate.grant(one, grant), gate.refuse(two, ""), gate.grant(three, grant)))
    gate.withdraw(three, "again")
    assert len(link.said) == 4
    # A cell that has ended meanwhile takes nothing, and the server hears so.
    late = gate.ask(7, lambda *_: False, priority=1, affinity="GPU", deadline_s=5.0)
    assert not gate.grant(late, grant)
