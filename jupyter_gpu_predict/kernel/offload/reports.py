"""What suspending and restoring did, in numbers and words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Kept = tuple[tuple[str, int], ...]
"""Memory that was left where it was, as (reason, bytes)."""


@dataclass(frozen=True, slots=True)
class SuspendReport:
    """What `Offloader.suspend` did.

    `kept` names the device memory that was left; `seconds` is the whole call. `spilled_bytes` of
    `freed_bytes` lie on disk. `chosen` says in words why these storages, where only some were
    wanted.
    """

    freed_bytes: int
    storages: int
    kept: Kept
    seconds: float
    spilled_bytes: int = 0
    chosen: str = ""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What `Offloader.restore` did; `kept` names what had to stay in host memory and why.

    `left_bytes` is what is still in host memory, for whatever reason.
    """

    bytes: int
    storages: int
    kept: Kept
    seconds: float
    left_bytes: int = 0


def summed(pairs: Iterable[tuple[str, int]]) -> Kept:
    """Add up bytes by reason."""
    total: dict[str, int] = {}
    for reason, nbytes in pairs:
        if nbytes:
            total[reason] = total.get(reason, 0) + nbytes
    return tuple(total.items())
