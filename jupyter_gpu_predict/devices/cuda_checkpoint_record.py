"""What is remembered of a kernel's driver checkpoints; plain data for the caller to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .cuda_checkpoint_steps import FREE_STATES, Goal, ProcessState

GIVE_UP_AFTER = 2
"""Failures of one kind in a row after which it is not tried again under the same driver."""

PERMANENT = frozenset(
    {"not_supported", "not_permitted", "no_effect", "invalid_argument", "died", "overrun"}
)
"""Reasons that another attempt would meet again; the others pass (a busy GPU, full memory)."""


@dataclass(frozen=True, slots=True)
class HeldProcess:
    """A CUDA process of a kernel, and what the driver last said of it.

    `gpus` are the bytes that it had on each GPU before it gave them up.
    """

    pid: int
    started: int
    state: ProcessState
    gpus: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """What did not work for this kernel under one driver, and how often in a row.

    `operation` is ``"suspend"``, ``"resume"`` or ``"move"`` (a resume on another GPU).
    """

    driver_version: str
    operation: str
    why: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A kernel's processes that the driver may be holding, and what did not work before.

    It is given to the caller to keep before a process is touched and after each step, so that
    what it says is never less than what is true.

    Attributes
    ----------
    goal
        What was last asked of the processes.
    settled
        Whether that ended and `processes` are as the driver last reported; if not, an operation is
        under way, or was cut short.
    processes
        The kernel's CUDA processes, as long as one of them may be held.
    failures
        What did not work.
    """

    kernel_id: str
    goal: Goal = Goal.RUNNING
    settled: bool = True
    processes: tuple[HeldProcess, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def may_hold(self) -> bool:
        """Whether a process may be locked or without its device memory."""
        return bool(self.processes) and (
            not self.settled or any(p.state not in FREE_STATES for p in self.processes)
        )

    @property
    def suspended(self) -> bool:
        """Whether all device memory of the kernel is out, by the last that was seen."""
        living = [p for p in self.processes if p.state is not ProcessState.GONE]
        return (
            self.settled
            and bool(living)
            and all(p.state is ProcessState.CHECKPOINTED for p in living)
        )

    @property
    def bytes(self) -> int:
        """Device memory that the kernel gave up, in bytes."""
        return sum(sum(process.gpus.values()) for process in self.processes)

    def with_state(self, pid: int, state: ProcessState) -> CheckpointRecord:
        """Return the record after the driver said `state` of `pid`."""
        return replace(
            self,
            processes=tuple(replace(p, state=state) if p.pid == pid else p for p in self.processes),
        )

    def with_failure(self, driver_version: str, operation: str, why: str) -> CheckpointRecord:
        """Return the record with one more failure; those that pass are not remembered."""
        if why not in PERMANENT or not driver_version:
            return self
        former = [f for f in self.failures if _same(f, driver_version, operation, why)]
        times = former[0].times + 1 if former else 1
        others = [f for f in self.failures if f not in former]
        return replace(self, failures=(*others, Failure(driver_version, operation, why, times)))

    def with_success(self, driver_version: str, operation: str) -> CheckpointRecord:
        """Return the record without the failures that a success has disproved."""
        kept = tuple(
            f
            for f in self.failures
            if (f.driver_version, f.operation) != (driver_version, operation)
        )
        return replace(self, failures=kept)

    def why_not(self, driver_version: str, operation: str) -> Failure | None:
        """Return the failure for which `operation` is not tried any more under this driver."""
        for failure in self.failures:
            if (failure.driver_version, failure.operation) == (
                driver_version,
                operation,
            ) and failure.times >= GIVE_UP_AFTER:
                return failure
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckpointRecord:
        """Return the record that `to_json` made; fields it does not know are left out."""
        return cls(
            kernel_id=str(data["kernel_id"]),
            goal=Goal(data["goal"]),
            settled=bool(data["settled"]),
            processes=tuple(
                HeldProcess(
                    int(p["pid"]), int(p["started"]), ProcessState(p["state"]), dict(p["gpus"])
                )
                for p in data["processes"]
            ),
            failures=tuple(
                Failure(
                    str(f["driver_version"]), str(f["operation"]), str(f["why"]), int(f["times"])
                )
                for f in data["failures"]
            ),
        )


def _same(failure: Failure, driver_version: str, operation: str, why: str) -> bool:
    return (failure.driver_version, failure.operation, failure.why) == (
        driver_version,
        operation,
        why,
    )
