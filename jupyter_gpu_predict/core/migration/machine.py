"""The life of a migration: every rule of it stands in one table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from ...errors import ConflictError
from ..model import Lease, LeaseState, Rung


class MigrationState(str, Enum):
    """How far a migration has come; `DONE` and `ABORTED` are final."""

    REQUESTED = "requested"
    STANDBY = "standby"
    CAPTURED = "captured"
    VERIFIED = "verified"
    SWITCHED = "switched"
    DONE = "done"
    ABORTED = "aborted"


class MigrationEvent(str, Enum):
    """What can happen to a migration."""

    STANDBY_READY = "standby_ready"
    STATE_CAPTURED = "state_captured"
    STATE_VERIFIED = "state_verified"
    PORTS_SWITCHED = "ports_switched"
    OLD_GONE = "old_gone"
    ABORT = "abort"


class Undo(str, Enum):
    """What an abort has to put back."""

    RELEASE_HELD_MESSAGES = "release_held_messages"
    RESUME_SOURCE = "resume_source"
    DISCARD_CAPTURE = "discard_capture"
    STOP_STANDBY = "stop_standby"
    FREE_TARGET = "free_target"
    RESTORE_LEASE = "restore_lease"


_S, _E = MigrationState, MigrationEvent

# Once the ports are switched the new process has the kernel's future: from there only forward.
RULES: dict[tuple[MigrationState, MigrationEvent], MigrationState] = {
    (_S.REQUESTED, _E.STANDBY_READY): _S.STANDBY,
    (_S.STANDBY, _E.STATE_CAPTURED): _S.CAPTURED,
    (_S.CAPTURED, _E.STATE_VERIFIED): _S.VERIFIED,
    (_S.VERIFIED, _E.PORTS_SWITCHED): _S.SWITCHED,
    (_S.SWITCHED, _E.OLD_GONE): _S.DONE,
    (_S.REQUESTED, _E.ABORT): _S.ABORTED,
    (_S.STANDBY, _E.ABORT): _S.ABORTED,
    (_S.CAPTURED, _E.ABORT): _S.ABORTED,
    (_S.VERIFIED, _E.ABORT): _S.ABORTED,
}

# The user's kernel first, what it leaves behind after it. A step may be half done when its state
# is not reached yet, so each undo must also do for something that never began.
_HOLDING = (Undo.RESUME_SOURCE, Undo.RELEASE_HELD_MESSAGES, Undo.DISCARD_CAPTURE)
_PREPARED = (Undo.STOP_STANDBY, Undo.FREE_TARGET, Undo.RESTORE_LEASE)
_UNDO: dict[MigrationState, tuple[Undo, ...]] = {
    _S.REQUESTED: _PREPARED,
    _S.STANDBY: (*_HOLDING, *_PREPARED),
    _S.CAPTURED: (*_HOLDING, *_PREPARED),
    _S.VERIFIED: (*_HOLDING, *_PREPARED),
}


@dataclass(frozen=True, slots=True)
class Migration:
    """A kernel's move to another GPU.

    `former` is its lease as it was before, to go back to; `since_s` is when the present state
    began; `reason` is why it moves or, once aborted, why it does not.
    """

    migration_id: str
    kernel_id: str
    former: Lease
    target_gpu_uuid: str
    rung: Rung
    state: MigrationState
    since_s: float
    reason: str

    @property
    def over(self) -> bool:
        """Whether nothing more can happen."""
        return self.state in (MigrationState.DONE, MigrationState.ABORTED)


def request(
    running: Iterable[Migration],
    *,
    migration_id: str,
    former: Lease,
    target_gpu_uuid: str,
    rung: Rung,
    now_s: float,
    reason: str,
) -> Migration:
    """Return a new migration of the kernel that holds lease `former`.

    Raises
    ------
    ConflictError
        If the kernel is in a migration already, its lease cannot move, or it is there already.
    """
    kernel_id = former.kernel_id
    for other in running:
        if other.kernel_id == kernel_id and not other.over:
            raise ConflictError(
                f"kernel {kernel_id} is moving to {other.target_gpu_uuid} already "
                f"({other.state.value}); wait for migration {other.migration_id}"
            )
    if former.state in (LeaseState.MIGRATING, LeaseState.RELEASED):
        raise ConflictError(f"kernel {kernel_id}: its lease is {former.state.value}; bind it first")
    if former.gpu_uuid == target_gpu_uuid:
        raise ConflictError(f"kernel {kernel_id} is on {target_gpu_uuid} already; name another GPU")
    return Migration(
        migration_id=migration_id,
        kernel_id=kernel_id,
        former=former,
        target_gpu_uuid=target_gpu_uuid,
        rung=rung,
        state=MigrationState.REQUESTED,
        since_s=now_s,
        reason=reason,
    )


def advance(
    migration: Migration, event: MigrationEvent, *, now_s: float, reason: str | None = None
) -> Migration:
    """Return the migration after `event`.

    Raises
    ------
    ConflictError
        If the event is illegal in this state; the message names both.
    """
    to = RULES.get((migration.state, event))
    if to is None:
        allowed = sorted(e.value for s, e in RULES if s is migration.state)
        raise ConflictError(
            f"migration {migration.migration_id} of kernel {migration.kernel_id}: {event.value} is "
            f"not possible while it is {migration.state.value}; "
            f"possible: {', '.join(allowed) or 'nothing, it is over'}"
        )
    return replace(migration, state=to, since_s=now_s, reason=reason or migration.reason)


def undo_steps(state: MigrationState) -> tuple[Undo, ...]:
    """Return what an abort in `state` has to put back, in order; each step is safe to repeat.

    The tuple is empty where there is nothing to undo: after the switch, and when it is over.
    """
    return _UNDO.get(state, ())
