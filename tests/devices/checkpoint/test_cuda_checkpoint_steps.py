"""The rule that picks each call, over a driver in memory that dies, errs and lies at any call."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.devices.cuda_checkpoint_driver import DriverError
from jupyter_gpu_predict.devices.cuda_checkpoint_helper import Order, Reaching
from jupyter_gpu_predict.devices.cuda_checkpoint_steps import (
    Goal,
    ProcessState,
    Step,
    goal_after_interruption,
    next_step,
    reached,
    reason_of,
)

RUNNING, LOCKED, OUT = ProcessState.RUNNING, ProcessState.LOCKED, ProcessState.CHECKPOINTED
MOVES = {
    "lock": (RUNNING, LOCKED),
    "checkpoint": (LOCKED, OUT),
    "restore": (OUT, LOCKED),
    "unlock": (LOCKED, RUNNING),
}


class Killed(BaseException):
    """The end of the helper, as abrupt as a signal."""


class MemoryDriver:
    """The driver's state machine without a driver; `faults` are by number of the call."""

    way, version, cuda = "memory", "memory", 13000

    def __init__(self, count: int) -> None:
        self.states = dict.fromkeys(range(1, count + 1), RUNNING)
        self.faults: dict[int, str] = {}
        self.calls = itertools.count()
        self.ran_apart = False

    def start(self) -> None: ...

    def state(self, pid: int) -> ProcessState:
        return self.states[pid]

    def lock(self, pid: int, timeout_ms: int) -> None:
        self._move(pid, "lock")

    def checkpoint(self, pid: int) -> None:
        self._move(pid, "checkpoint")

    def restore(self, pid: int, gpu_map: Mapping[str, str] | None) -> None:
        self._move(pid, "restore")

    def unlock(self, pid: int) -> None:
        self._move(pid, "unlock")

    def _move(self, pid: int, call: str) -> None:
        fault = self.faults.get(next(self.calls))
        before, after = MOVES[call]
        if fault == "die before":
            raise Killed
        if fault == "error":
            raise DriverError(304)
        if fault == "sometimes":
            raise DriverError(801)
        if self.states[pid] is not before:
            raise DriverError(401)
        if fault != "lie":
            self.states[pid] = after
        self.ran_apart |= {RUNNING, OUT} <= set(self.states.values())
        if fault == "die after":
            raise Killed


def attempt(driver: MemoryDriver, goal: Goal, faults: Mapping[int, str]) -> tuple[Any, list[Any]]:
    driver.faults, driver.calls, told = dict(faults), itertools.count(), []
    order = Order(goal, tuple((pid, 0) for pid in driver.states))
    try:
        end = Reaching(driver, order, told.append, started=lambda pid: 0, pause_s=0).run()
    except Killed:
        end = None
    return end, told


FAULTS = st.dictionaries(
    st.integers(0, 7),
    st.sampled_from(["die before", "die after", "error", "sometimes", "lie"]),
    max_size=3,
)


@given(
    count=st.integers(1, 3), attempts=st.lists(st.tuples(st.sampled_from(Goal), FAULTS), max_size=6)
)
def test_whatever_dies_or_errs_everything_can_be_brought_back(
    count: int, attempts: list[tuple[Goal, dict[int, str]]]
) -> None:
    driver = MemoryDriver(count)
    for goal, faults in attempts:
        before = dict(driver.states)
        end, _ = attempt(driver, goal, faults)
        if end is None:
            continue
        if end["ok"]:
            assert reached(driver.states.values(), goal)
        elif end["undone"]:
            other = Goal.RUNNING if goal is Goal.SUSPENDED else Goal.SUSPENDED
            assert reached(driver.states.values(), other), (before, driver.states)
        # What it tells last is what is.
        assert {int(p): s for p, s in end["states"].items()} == {
            p: s.value for p, s in driver.states.items()
        }
    end, _ = attempt(driver, Goal.RUNNING, {})
    assert end["ok"]
    assert set(driver.states.values()) == {RUNNING}


@given(count=st.integers(1, 4), goals=st.lists(st.sampled_from(Goal), max_size=5))
def test_no_process_runs_while_the_memory_of_another_is_away(count: int, goals: list[Goal]) -> None:
    driver = MemoryDriver(count)
    for goal in goals:
        end, told = attempt(driver, goal, {})
        assert end["ok"]
        assert reached(driver.states.values(), goal)
        steps = [(e["pid"], e["step"]) for e in told if e["event"] == "step"]
        begun = [(e["pid"], e["step"]) for e in told if e["event"] == "begin"]
        assert [b for b in begun if b[1] != "state"] == steps
    assert not driver.ran_apart


@pytest.mark.parametrize(
    ("states", "goal", "expected"),
    [
        ([RUNNING, LOCKED], Goal.SUSPENDED, (Step.LOCK, 0)),
        ([LOCKED, OUT], Goal.SUSPENDED, (Step.CHECKPOINT, 0)),
        ([OUT, OUT], Goal.SUSPENDED, None),
        ([LOCKED, OUT], Goal.RUNNING, (Step.RESTORE, 1)),
        ([LOCKED, LOCKED], Goal.RUNNING, (Step.UNLOCK, 0)),
        ([ProcessState.FAILED, LOCKED], Goal.RUNNING, (Step.UNLOCK, 1)),
        ([ProcessState.CHECKPOINTING, OUT], Goal.RUNNING, (Step.WAIT, 0)),
        ([ProcessState.GONE, ProcessState.UNKNOWN], Goal.RUNNING, None),
    ],
)
def test_the_next_call_follows_from_the_states_alone(
    states: list[ProcessState], goal: Goal, expected: tuple[Step, int] | None
) -> None:
    assert next_step(dict(enumerate(states)), goal) == expected


@pytest.mark.parametrize(
    ("asked", "states", "room", "expected"),
    [
        (Goal.SUSPENDED, [OUT, OUT], True, Goal.SUSPENDED),
        (Goal.SUSPENDED, [OUT, LOCKED], True, Goal.RUNNING),
        (Goal.SUSPENDED, [OUT, LOCKED], False, Goal.SUSPENDED),
        (Goal.SUSPENDED, [RUNNING, LOCKED], False, Goal.RUNNING),
        (Goal.SUSPENDED, [ProcessState.GONE], True, Goal.RUNNING),
        (Goal.RUNNING, [OUT, OUT], True, Goal.RUNNING),
        (Goal.RUNNING, [OUT, LOCKED], False, Goal.SUSPENDED),
    ],
)
def test_what_was_cut_short_is_undone_unless_it_was_done_or_there_is_no_room(
    asked: Goal, states: list[ProcessState], room: bool, expected: Goal
) -> None:
    assert goal_after_interruption(asked, states, room=room) is expected


def test_a_call_of_another_helper_is_waited_for_but_not_for_ever() -> None:
    driver = MemoryDriver(1)
    driver.states[1] = ProcessState.CHECKPOINTING
    looks = iter([ProcessState.CHECKPOINTING] * 5)
    driver.state = lambda pid: next(looks, driver.states[pid])  # type: ignore[method-assign]
    driver.states[1] = OUT
    assert attempt(driver, Goal.RUNNING, {})[0]["ok"]
    driver.state = lambda pid: ProcessState.RESTORING  # type: ignore[method-assign]
    order = Order(Goal.RUNNING, ((1, 0),), wait_s=0)
    end = Reaching(driver, order, lambda event: None, started=lambda pid: 0).run()
    assert (end["ok"], end["why"]) == (False, "busy")


def test_answers_have_names() -> None:
    assert reason_of(600, Step.LOCK) == "lock_timeout"
    assert (reason_of(600), reason_of(801), reason_of(719)) == (
        "not_ready",
        "not_supported",
        "cuda_719",
    )
