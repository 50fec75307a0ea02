"""What a decision says is to be done: actions, and the plan that puts them in order."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Rung


@dataclass(frozen=True, slots=True)
class Bind:
    """Grant `claim_id` by a bound lease of `bytes` on a GPU; brings suspended state back first."""

    kernel_id: str
    gpu_uuid: str
    bytes: int
    claim_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Prebind:
    """Bring a suspended kernel's state back, or reserve memory for it, before its cell asks."""

    kernel_id: str
    gpu_uuid: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Resize:
    """Set a bound lease to `bytes`, without touching the kernel's state."""

    kernel_id: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Suspend a kernel by `rung`: take its device memory back and keep its state.

    With `mid_cell`, which only the driver's checkpoint can do, its running cell is halted where it
    is and goes on from there later.
    """

    kernel_id: str
    rung: Rung
    for_kernel_id: str | None
    reason: str
    mid_cell: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """End a lease that holds nothing any more, e.g. a reservation past its grace period."""

    kernel_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Save a kernel's state to disk between its cells.

    `cause` is ``"risk"`` (its GPU may fail) or ``"idle"`` (it has changed and is idle now).
    """

    kernel_id: str
    reason: str
    cause: str = "risk"


@dataclass(frozen=True, slots=True)
class Migrate:
    """Move a kernel to another GPU by `rung`; `bytes` are to be set aside there first."""

    kernel_id: str
    target_gpu_uuid: str
    rung: Rung
    reason: str
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Queue:
    """Let a claim wait; `position` counts from 1, `expected_wait_s` is ``None`` when unknown."""

    claim_id: str
    kernel_id: str
    position: int
    expected_wait_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """End a claim that cannot be granted (deadline passed, larger than any GPU)."""

    claim_id: str
    kernel_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cordon:
    """Give no new leases on a GPU."""

    gpu_uuid: str
    reason: str


Action = (
    Bind | Prebind | Resize | Reclaim | Release | TakeSnapshot | Migrate | Queue | Refuse | Cordon
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `decide` returns: actions in the order in which they are to be carried out."""

    made_s: float
    actions: tuple[Action, ...] = ()
