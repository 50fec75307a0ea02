"""The life of a lease: every rule of it stands in one table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from ...errors import BadInputError, ConflictError, StaleEpochError
from ..model import Lease, LeaseState


class LeaseEvent(str, Enum):
    """What can happen to a lease."""

    RESERVE = "reserve"
    BIND = "bind"
    PREBIND_EXPIRE = "prebind_expire"
    SUSPEND = "suspend"
    RESUME = "resume"
    BEGIN_MIGRATION = "begin_migration"
    COMMIT_MIGRATION = "commit_migration"
    ABORT_MIGRATION = "abort_migration"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Rule:
    """Outcome of an event in a state.

    `to` is the next state, ``None`` for "the state the lease had before it migrated". `new_epoch`
    rules fence: commands with the former epoch are stale afterwards. `may_move` rules may name
    another GPU.
    """

    to: LeaseState | None
    new_epoch: bool = False
    may_move: bool = False


_S, _E = LeaseState, LeaseEvent

# A suspended lease is resumed on its own GPU only: the process that holds the state is tied to it,
# so it goes elsewhere by a migration. `RELEASED` has no rules: it is final.
RULES: dict[tuple[LeaseState, LeaseEvent], Rule] = {
    (_S.RESERVED, _E.RESERVE): Rule(_S.RESERVED, new_epoch=True, may_move=True),
    (_S.RESERVED, _E.BIND): Rule(_S.BOUND, new_epoch=True, may_move=True),
    (_S.RESERVED, _E.PREBIND_EXPIRE): Rule(_S.RELEASED),
    (_S.RESERVED, _E.SUSPEND): Rule(_S.SUSPENDED, new_epoch=True),
    (_S.RESERVED, _E.BEGIN_MIGRATION): Rule(_S.MIGRATING),
    (_S.RESERVED, _E.RELEASE): Rule(_S.RELEASED),
    (_S.BOUND, _E.BIND): Rule(_S.BOUND, new_epoch=True, may_move=True),
    (_S.BOUND, _E.SUSPEND): Rule(_S.SUSPENDED, new_epoch=True),
    (_S.BOUND, _E.BEGIN_MIGRATION): Rule(_S.MIGRATING),
    (_S.BOUND, _E.RELEASE): Rule(_S.RELEASED),
    (_S.SUSPENDED, _E.RESERVE): Rule(_S.RESERVED, new_epoch=True),
    (_S.SUSPENDED, _E.RESUME): Rule(_S.BOUND, new_epoch=True),
    (_S.SUSPENDED, _E.BEGIN_MIGRATION): Rule(_S.MIGRATING),
    (_S.SUSPENDED, _E.RELEASE): Rule(_S.RELEASED),
    (_S.MIGRATING, _E.COMMIT_MIGRATION): Rule(None, new_epoch=True, may_move=True),
    (_S.MIGRATING, _E.ABORT_MIGRATION): Rule(None),
    (_S.MIGRATING, _E.RELEASE): Rule(_S.RELEASED),
}

_OPENING: dict[LeaseEvent, LeaseState] = {_E.RESERVE: _S.RESERVED, _E.BIND: _S.BOUND}


def check_epoch(lease: Lease, command_epoch: int) -> None:
    """Refuse a command that does not carry the lease's present epoch.

    Raises
    ------
    StaleEpochError
        If the command was given before the lease's last grant.
    ConflictError
        If it carries an epoch this lease never had.
    """
    if command_epoch < lease.epoch:
        raise StaleEpochError(
            f"kernel {lease.kernel_id}: the command carries epoch {command_epoch}, but its lease "
            f"on {lease.gpu_uuid} is at epoch {lease.epoch}; read the lease again"
        )
    if command_epoch > lease.epoch:
        raise ConflictError(
            f"kernel {lease.kernel_id}: the command carries epoch {command_epoch}, which its lease "
            f"on {lease.gpu_uuid} (epoch {lease.epoch}) has not reached; read the lease again"
        )


def open_lease(
    event: LeaseEvent,
    *,
    kernel_id: str,
    gpu_uuid: str,
    bytes: int,  # noqa: A002  the model's word
    epoch: int,
    now_s: float,
    expires_s: float | None = None,
    previous: Lease | None = None,
) -> Lease:
    """Make a kernel's new lease by `RESERVE` or `BIND`.

    Parameters
    ----------
    expires_s
        End of a reservation's grace period, a point in time.
    previous
        The kernel's last lease; it must be over, and the new epoch greater than its own.

    Raises
    ------
    ConflictError
        If `event` opens no lease or `previous` is not released.
    StaleEpochError
        If `epoch` does not exceed the previous one.
    BadInputError
        If `bytes` is negative.
    """
    if event not in _OPENING:
        raise ConflictError(f"kernel {kernel_id} has no lease: {event.value} needs one; bind first")
    if previous is not None:
        if previous.state is not LeaseState.RELEASED:
            raise ConflictError(
                f"kernel {kernel_id} already has a lease ({previous.state.value}) on "
                f"{previous.gpu_uuid}; release it first"
            )
        _check_new_epoch(previous, epoch)
    return Lease(
        kernel_id=kernel_id,
        gpu_uuid=gpu_uuid,
        bytes=_size(kernel_id, bytes),
        state=_OPENING[event],
        epoch=epoch,
        since_s=now_s,
        expires_s=expires_s if event is LeaseEvent.RESERVE else None,
    )


def advance(
    lease: Lease,
    event: LeaseEvent,
    *,
    now_s: float,
    epoch: int | None = None,
    command_epoch: int | None = None,
    gpu_uuid: str | None = None,
    bytes: int | None = None,  # noqa: A002  the model's word
    resident_bytes: int = 0,
    expires_s: float | None = None,
    former: Lease | None = None,
) -> Lease:
    """Return the lease after `event`.

    Parameters
    ----------
    epoch
        The new fencing number, greater than the lease's; required by rules with `new_epoch`.
    command_epoch
        The epoch the command carries, checked first where given.
    gpu_uuid
        Another GPU, for rules with `may_move`.
    bytes
        What is set aside from now on; unchanged where ``None``.
    resident_bytes
        What stays on the GPU when suspended.
    former
        The lease as it was before `BEGIN_MIGRATION`; required to commit or abort a migration.

    Raises
    ------
    ConflictError
        If the event is illegal in this state; the message names both.
    StaleEpochError
        If `command_epoch` is older than the lease, or `epoch` does not exceed it.
    BadInputError
        If a size is negative or a required argument is missing.
    """
    if command_epoch is not None:
        check_epoch(lease, command_epoch)
    rule = RULES.get((lease.state, event))
    if rule is None:
        allowed = sorted(e.value for s, e in RULES if s is lease.state)
        raise ConflictError(
            f"kernel {lease.kernel_id}: {event.value} is not possible while its lease is "
            f"{lease.state.value}; possible: {', '.join(allowed) or 'nothing, it is over'}"
        )
    to = rule.to if rule.to is not None else _former(lease, former).state
    if epoch is not None:
        _check_new_epoch(lease, epoch)
    elif rule.new_epoch:
        raise BadInputError(f"kernel {lease.kernel_id}: {event.value} needs a new epoch")
    target = lease.gpu_uuid if gpu_uuid is None else gpu_uuid
    if target != lease.gpu_uuid and not rule.may_move:
        raise ConflictError(
            f"kernel {lease.kernel_id}: {event.value} cannot take its {lease.state.value} lease "
            f"from {lease.gpu_uuid} to {target}; migrate it"
        )
    return replace(
        lease,
        gpu_uuid=target,
        bytes=_bytes_after(lease, event, bytes, former),
        state=to,
        epoch=lease.epoch if epoch is None else epoch,
        since_s=now_s,
        expires_s=_expires_after(to, expires_s, former),
        resident_bytes=_resident_after(lease, event, to, resident_bytes, former),
    )


def resize(lease: Lease, bytes: int) -> Lease:  # noqa: A002  the model's word
    """Return a lease in use with another size; state, epoch and age stay as they are.

    Raises
    ------
    ConflictError
        If the lease is neither bound nor reserved.
    BadInputError
        If `bytes` is negative.
    """
    if lease.state not in (LeaseState.BOUND, LeaseState.RESERVED):
        raise ConflictError(
            f"kernel {lease.kernel_id}: a {lease.state.value} lease cannot be resized; bind it"
        )
    return replace(lease, bytes=_size(lease.kernel_id, bytes))


def _former(lease: Lease, former: Lease | None) -> Lease:
    if former is None or former.kernel_id != lease.kernel_id:
        raise BadInputError(
            f"kernel {lease.kernel_id}: the end of a migration needs the lease as it was before"
        )
    if former.state in (LeaseState.MIGRATING, LeaseState.RELEASED):
        raise BadInputError(
            f"kernel {lease.kernel_id}: a {former.state.value} lease is not one from before"
        )
    return former


def _bytes_after(lease: Lease, event: LeaseEvent, size: int | None, former: Lease | None) -> int:
    if size is not None:
        return _size(lease.kernel_id, size)
    if event is LeaseEvent.BEGIN_MIGRATION:
        # A suspended lease holds its resident bytes only, and moving it must not hold more.
        return lease.held_bytes
    if event in (LeaseEvent.COMMIT_MIGRATION, LeaseEvent.ABORT_MIGRATION):
        return _former(lease, former).bytes
    return lease.bytes


def _resident_after(
    lease: Lease, event: LeaseEvent, to: LeaseState, resident: int, former: Lease | None
) -> int:
    if event is LeaseEvent.ABORT_MIGRATION:
        return _former(lease, former).resident_bytes
    if to is LeaseState.SUSPENDED:
        return _size(lease.kernel_id, resident)
    return 0


def _expires_after(to: LeaseState, expires_s: float | None, former: Lease | None) -> float | None:
    if to is not LeaseState.RESERVED:
        return None
    return former.expires_s if expires_s is None and former is not None else expires_s


def _check_new_epoch(lease: Lease, epoch: int) -> None:
    if epoch <= lease.epoch:
        raise StaleEpochError(
            f"kernel {lease.kernel_id}: the new epoch {epoch} does not exceed the present "
            f"{lease.epoch}; take the next one from the store"
        )


def _size(kernel_id: str, size: int) -> int:
    if size < 0:
        raise BadInputError(f"kernel {kernel_id}: a lease cannot have {size} bytes; give 0 or more")
    return size
