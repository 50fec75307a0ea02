"""Which call of the driver comes next, decided from nothing but the states that it reports.

A process goes running → locked → checkpointed → locked → running. Because each step is chosen
anew from what the driver says, it does not matter how the states came about: an attempt that died
half way is completed, or undone, by the same rule that would have carried it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum


class ProcessState(str, Enum):
    """State of a CUDA process as the driver tells it; `GONE` and `UNKNOWN` are ours."""

    RUNNING = "running"
    LOCKED = "locked"
    CHECKPOINTED = "checkpointed"
    FAILED = "failed"
    CHECKPOINTING = "checkpointing"
    RESTORING = "restoring"
    GONE = "gone"
    UNKNOWN = "unknown"


DRIVER_STATES: tuple[ProcessState, ...] = (
    ProcessState.RUNNING,
    ProcessState.LOCKED,
    ProcessState.CHECKPOINTED,
    ProcessState.FAILED,
    ProcessState.CHECKPOINTING,
    ProcessState.RESTORING,
)
"""``CUprocessState`` in the order of its numbers."""

FREE_STATES = frozenset({ProcessState.RUNNING, ProcessState.GONE})
"""States in which the driver holds nothing back from a process."""

_BETWEEN = frozenset({ProcessState.CHECKPOINTING, ProcessState.RESTORING})


class Goal(str, Enum):
    """What all CUDA processes of a kernel are to become."""

    RUNNING = "running"
    SUSPENDED = "suspended"


class Step(str, Enum):
    """One call of the driver; `WAIT` is for one that another helper began."""

    LOCK = "lock"
    CHECKPOINT = "checkpoint"
    RESTORE = "restore"
    UNLOCK = "unlock"
    WAIT = "wait"


def next_step(states: Mapping[int, ProcessState], goal: Goal) -> tuple[Step, int] | None:
    """Return the next call towards `goal` and the pid to make it for; ``None`` when none is left.

    Every process is locked before the first is checkpointed, and every one restored before the
    first is unlocked: none of them runs while another's memory is away. Processes that are gone,
    failed or do not answer are passed over, so that the others are still brought back; whether
    the goal was reached is for `obstacle` to say.
    """
    order = (
        ((ProcessState.RUNNING, Step.LOCK), (ProcessState.LOCKED, Step.CHECKPOINT))
        if goal is Goal.SUSPENDED
        else ((ProcessState.CHECKPOINTED, Step.RESTORE), (ProcessState.LOCKED, Step.UNLOCK))
    )
    for pid, state in states.items():
        if state in _BETWEEN:
            return Step.WAIT, pid
    for wanted, step in order:
        for pid, state in states.items():
            if state is wanted:
                return step, pid
    return None


def reached(states: Iterable[ProcessState], goal: Goal) -> bool:
    """Whether every process that lives is where `goal` wants it."""
    wanted = ProcessState.RUNNING if goal is Goal.RUNNING else ProcessState.CHECKPOINTED
    return all(state in (wanted, ProcessState.GONE) for state in states)


def obstacle(states: Mapping[int, ProcessState]) -> tuple[int, ProcessState] | None:
    """Return the first process that no call of the driver can move, and its state."""
    stuck = (ProcessState.FAILED, ProcessState.UNKNOWN)
    return next(((pid, state) for pid, state in states.items() if state in stuck), None)


def goal_after_interruption(asked: Goal, states: Iterable[ProcessState], *, room: bool) -> Goal:
    """Return where to bring a kernel whose suspension or resumption was cut short.

    Parameters
    ----------
    asked
        What was being done.
    states
        States that the driver reports now.
    room
        Whether the memory that the kernel gave up would fit on its GPU again.

    Notes
    -----
    What was finished stays. Otherwise the kernel goes on running, as if it had never been asked,
    unless part of its memory is out and has no room to come back to.
    """
    living = [state for state in states if state is not ProcessState.GONE]
    if asked is Goal.SUSPENDED and living and reached(living, Goal.SUSPENDED):
        return Goal.SUSPENDED
    if ProcessState.CHECKPOINTED in living and not room:
        return Goal.SUSPENDED
    return Goal.RUNNING


REASONS: dict[int, str] = {
    1: "invalid_argument",
    2: "out_of_memory",
    3: "not_initialized",
    100: "no_device",
    101: "invalid_device",
    304: "operating_system",
    401: "illegal_state",
    500: "not_supported",
    600: "not_ready",
    800: "not_permitted",
    801: "not_supported",
}
"""Our names of ``CUresult`` numbers; a symbol that is not found is a call that is not supported."""


def reason_of(code: int, step: Step | None = None) -> str:
    """Return the short name of a driver's answer, e.g. ``"lock_timeout"``."""
    if code == 600 and step is Step.LOCK:
        return "lock_timeout"
    return REASONS.get(code, f"cuda_{code}")


SENTENCES: dict[str, str] = {
    "lock_timeout": "its GPU work did not come to a stop within the time limit",
    "not_supported": "the driver answers that it is not supported for this process",
    "not_permitted": "the driver does not permit it",
    "out_of_memory": "there is not enough memory",
    "operating_system": "the operating system refused a call that the driver needs",
    "invalid_argument": "the driver calls an argument invalid",
    "illegal_state": "the process is in another state than the call needs",
    "no_effect": "the driver answered success, and the state stayed as it was",
    "server_gone": "the server went away meanwhile",
    "failed": "the driver reports a state that it cannot leave",
    "unknown": "its state cannot be read",
}
"""What the names mean, to stand after a colon."""
