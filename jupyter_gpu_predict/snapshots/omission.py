"""Leave variables out of a snapshot that every restore makes again by running their cells.

Only a variable that stands alone can be left out: one whose objects and memory no other stored
variable has, for else the two would have copies of their own after a restore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .report import VariableReport

if TYPE_CHECKING:
    from .buffers import Source
    from .capture import Prepared
    from .sharing import Group

CELLS = "cells"
"""The part of the extra state that has the session's cell runs."""

LEAST_BYTES = 1 << 20
"""What is smaller costs nothing to store."""

STREAM_BYTES = 256 << 10
"""What has a longer stream has been pickled, and perhaps written, by the time of the choice."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Why a variable is left out.

    What is made again must have the `digest`; `needs` are the stored variables that its cells read.
    """

    digest: str
    reason: str
    needs: tuple[str, ...]


Choose = Callable[[Mapping[str, int], Collection[str]], Mapping[str, Omission]]
"""Given the bytes of each variable that may be left out, and the names of all that is stored."""


def leave_out(state: Prepared, choose: Choose) -> Prepared:
    """Return `state` without the variables that `choose` names."""
    stored = [v.name for v in state.variables if v.status == "saved"]
    if not any(("extra", CELLS) in group.keys for group in state.plan.groups):
        return state  # nothing could be made again without the record of the cells
    try:
        alone = _alone(state)
        chosen = {n: o for n, o in choose(alone, stored).items() if n in alone} if alone else {}
    except Exception:
        return state  # whatever it was, it is no reason not to save
    if not chosen:
        return state
    kept = [g for g in state.plan.groups if g.keys[0][0] != "var" or g.keys[0][1] not in chosen]
    return replace(
        state,
        plan=replace(state.plan, groups=kept),
        variables=tuple(_told(v, chosen.get(v.name)) for v in state.variables),
        left_out={name: omission.needs for name, omission in chosen.items()},
    )


def needed(manifest: Mapping[str, Any], only: Collection[str]) -> list[str]:
    """Return what must be restored, besides `only`, so that what was left out can be made again."""
    # Snapshots of before this was possible say nothing of it.
    left_out = manifest.get("recompute", {})
    names = dict.fromkeys(n for name in only for n in left_out.get(name, ()))
    return [name for name in names if name not in only]


def _told(variable: VariableReport, omission: Omission | None) -> VariableReport:
    if omission is None:
        return variable
    return replace(
        variable, status="tombstone", reason=omission.reason, nbytes=0, digest=omission.digest
    )


def _alone(state: Prepared) -> dict[str, int]:
    """Return the bytes of each variable that shares nothing with what else is stored."""
    users: dict[int, int] = {}
    for group in state.plan.groups:
        for index in group.buffers:
            users[index] = users.get(index, 0) + 1
    sources = state.sources
    overlapping = _overlapping(sources)
    remarked = {v.name for v in state.variables if v.status != "saved" or v.reason}
    found = {}
    for group in state.plan.groups:
        if len(group.keys) != 1 or group.keys[0][0] != "var" or not _whole(group):
            continue
        name = group.keys[0][1]
        own = set(group.buffers)
        nbytes = group.stream.nbytes + sum(sources[index].nbytes for index in own)
        if (
            nbytes >= LEAST_BYTES
            and name not in remarked
            and not own & overlapping
            and all(users[index] == 1 and not sources[index].device for index in own)
        ):
            found[name] = nbytes
    return found


def _whole(group: Group) -> bool:
    return group.stream.blob is None and group.stream.nbytes <= STREAM_BYTES


def _overlapping(sources: Mapping[int, Source]) -> set[int]:
    """Return the numbers of memory that lies, as a whole or in part, where other memory lies."""
    from .types_memory import address_of

    places = []
    for index, source in sources.items():
        if not source.device and source.nbytes:
            view = source.read()
            places.append((address_of(view), len(view), index))
    found: set[int] = set()
    end, last = -1, -1
    for address, nbytes, index in sorted(places):
        if address < end:
            found |= {index, last}
        if address + nbytes > end:
            end, last = address + nbytes, index
    return found
