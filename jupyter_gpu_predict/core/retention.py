"""Which automatic snapshots are given up, so that they take bounded space."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

LAST = "last"
"""Stands for the latest snapshot of a kernel, so none can be called so."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A snapshot as retention sees it.

    `owner` is whose state it is: the path of the notebook, or the id of a kernel without one.
    `chunks` are the bytes of each chunk by its name; snapshots share chunks of the same name.
    """

    snapshot_id: str
    owner: str
    created_s: float
    automatic: bool
    chunks: Mapping[str, int]


class Listed(Protocol):
    """What a line of the catalogue says of whose state a snapshot holds, and since when."""

    @property
    def kernel_id(self) -> str:
        """The kernel that was saved."""

    @property
    def notebook(self) -> str | None:
        """Its notebook, if it had one."""

    @property
    def created_s(self) -> float:
        """When it was saved."""


L = TypeVar("L", bound=Listed)


def latest(
    listed: Iterable[L], kernel_id: str, notebook: str | None, before_s: float = math.inf
) -> L | None:
    """Return the latest snapshot of a kernel, or else of its notebook; ``None`` if there is none.

    A notebook's kernel gets a new id when it is opened anew, and the state is still its user's.
    With `before_s` only those taken until then count, such as those of before a kernel's death.
    """
    found = [s for s in listed if s.created_s <= before_s]
    own = [s for s in found if s.kernel_id == kernel_id]
    if not own and notebook is not None:
        own = [s for s in found if s.notebook == notebook]
    return max(own, key=lambda s: s.created_s, default=None)


def owner_of(notebook: str | None, kernel_id: str) -> str:
    """Return whose state a snapshot holds."""
    return notebook or kernel_id


def surplus(
    saved: Iterable[Saved],
    *,
    keep: int,
    budget_bytes: int,
    running: Collection[str] = (),
    spared: Collection[str] = (),
) -> list[str]:
    """Return the ids of the automatic snapshots to delete, in the order in which to do it.

    What a user has named is never among them. Of each owner the latest `keep` stay, of these as
    many as fit the budget: first the older ones go, those of the owner whose state was saved
    longest ago first, then the latest of owners that run no more. The latest snapshot of an owner
    that runs always stays, even where that alone is beyond the budget.

    Parameters
    ----------
    keep
        How many automatic snapshots of one owner stay at most, at least 1.
    budget_bytes
        What automatic snapshots may hold together that no named one holds.
    running
        Owners with a kernel now.
    spared
        Ids that are in use, e.g. offered to a user.
    """
    snapshots = list(saved)
    automatic: dict[str, list[Saved]] = {}
    for snapshot in snapshots:
        if snapshot.automatic:
            automatic.setdefault(snapshot.owner, []).append(snapshot)
    for owned in automatic.values():
        owned.sort(key=_age, reverse=True)
    gone: list[Saved] = []
    for owned in automatic.values():
        gone += [s for s in owned[max(1, keep) :] if s.snapshot_id not in spared]
    held = _Held(snapshots)
    for snapshot in gone:
        held.drop(snapshot)
    for snapshot in _expendable(automatic, running, spared):
        if held.automatic_bytes <= budget_bytes:
            break
        if snapshot not in gone:
            held.drop(snapshot)
            gone.append(snapshot)
    return [s.snapshot_id for s in sorted(gone, key=_age)]


def _age(snapshot: Saved) -> tuple[float, str]:
    return snapshot.created_s, snapshot.snapshot_id


def _expendable(
    automatic: Mapping[str, Sequence[Saved]], running: Collection[str], spared: Collection[str]
) -> list[Saved]:
    """Return what may go for the budget, what is missed least first."""
    owners = sorted(automatic, key=lambda owner: _age(automatic[owner][0]))
    older = [s for owner in owners for s in reversed(automatic[owner][1:])]
    latest = [automatic[owner][0] for owner in owners if owner not in running]
    return [s for s in (*older, *latest) if s.snapshot_id not in spared]


class _Held:
    """Counts the bytes that only automatic snapshots hold."""

    def __init__(self, snapshots: Sequence[Saved]) -> None:
        self._users: Counter[str] = Counter()
        self._named: set[str] = set()
        self.automatic_bytes = 0
        for snapshot in snapshots:
            if not snapshot.automatic:
                self._named.update(snapshot.chunks)
        for snapshot in snapshots:
            if snapshot.automatic:
                for name, nbytes in snapshot.chunks.items():
                    self._users[name] += 1
                    if self._users[name] == 1 and name not in self._named:
                        self.automatic_bytes += nbytes

    def drop(self, snapshot: Saved) -> None:
        for name, nbytes in snapshot.chunks.items():
            self._users[name] -= 1
            if self._users[name] == 0 and name not in self._named:
                self.automatic_bytes -= nbytes
