"""Which cell a user runs next.

A conditional logit over the document's cells says where users go from here; what this notebook's
own moves were is mixed in as counts, so that it rules where it is known. Where a cell stands and
where the kernel has been is all that it looks at.

Whether a cell has run in this session yet is no feature, on purpose: public notebooks tell only
each cell's last run, so that in them one mostly goes back to cells that "never ran". For the same
reason they show too few repeats. The counts mend that within a notebook, and training on a
server's own traces does so for all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...errors import BadInputError
from ..model import NextCell
from ..trace.document import Trail
from .logit import Features, check_weights, fit_choices, shares, utility

NAME = "next cell"

FEATURES = (
    "next",
    "next behind",
    "next after going back",
    "one skipped",
    "same",
    "ahead",
    "distance ahead",
    "distance ahead, behind",
    "one before",
    "distance back",
    "first new one",
    "first new one after going back",
    "back to the one before",
    "on from the one before",
    "used to go on",
    "edited",
    "same, failed",
)
"""Features of a cell; "behind": cells further down have run; "new": the first below all of them."""

PRIOR = {"edited": 2.0, "same, failed": 1.5}
"""Weights before any data: assumptions. Public traces tell neither edits nor errors, so that these
stand until the model is trained on traces that do."""

RIDGE = 0.5
KIND_COUNTS = 20.0
"""Moves that the model's word weighs as much as, on how often users go on, repeat, jump."""

PAIR_COUNTS = 4.0
"""Moves from the same cell that the model's word weighs as much as."""

NEAR = 30
"""Of a long document, the cells this near to where the kernel was are candidates."""


@dataclass(frozen=True, slots=True)
class NextCellModel:
    """Tells the next cell; `weights` are those of :data:`FEATURES`."""

    weights: Mapping[str, float]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> NextCellModel:
        """Return the model kept as a JSON object of its weights.

        Raises
        ------
        ModelFileError
            If it was trained on other features, or a weight is no finite number.
        """
        return cls(check_weights(record, FEATURES, NAME))

    def forecast(self, trail: Trail, queued: Sequence[int] = ()) -> tuple[NextCell, ...]:
        """Return the cells that may be next, the likeliest first; their chances sum to 1.

        A request that is `queued` already is certain to be next, whatever the model thinks. In a
        long document cells far from where the kernel was are left out; an empty one has none.

        Raises
        ------
        BadInputError
            If a position is not in the document.
        """
        _check(trail, queued)
        if queued:
            return (NextCell(queued[0], 1.0),)
        cells = candidates(trail)
        if not cells:
            return ()
        found = features(trail, cells)
        chances = shares([utility(self.weights, found[c]) for c in cells])
        mixed = _with_pairs(trail, cells, _with_kinds(trail, cells, chances))
        ordered = sorted(zip(mixed, cells, strict=True), key=lambda item: (-item[0], item[1]))
        return tuple(NextCell(cell, chance) for chance, cell in ordered)


def fit(examples: Iterable[tuple[Trail, int]], ridge: float = RIDGE) -> NextCellModel:
    """Return the model of these moves: a trail, and the position of the cell that ran next.

    Raises
    ------
    BadInputError
        If there is no example, or a position is not in its document.
    """
    choices = []
    for trail, chosen in examples:
        _check(trail, (chosen,))
        cells = candidates(trail)
        if chosen in cells:
            found = features(trail, cells)
            choices.append(([found[c] for c in cells], cells.index(chosen)))
    return NextCellModel(fit_choices(choices, FEATURES, ridge, PRIOR))


def candidates(trail: Trail) -> list[int]:
    """Return the positions that may be next, ascending."""
    if trail.size <= 4 * NEAR:
        return list(range(trail.size))
    last = trail.positions[-1] if trail.positions else -1
    places = {0, *trail.positions[-NEAR:], *sorted(trail.edited)[:NEAR]}
    places.update(after for before, after in trail.earlier if before == last)
    for centre in {last, max(trail.positions, default=-1)}:
        places.update(range(centre - NEAR, centre + NEAR))
    return sorted(p for p in places if 0 <= p < trail.size)


def features(trail: Trail, cells: Iterable[int]) -> dict[int, Features]:
    """Return what is not zero of each cell's features."""
    run = trail.positions
    last = run[-1] if run else -1
    before = run[-2] if len(run) > 1 else None
    furthest = max(run, default=-1)
    behind = last < furthest
    back = before is not None and last < before
    on = _goes_on(run)
    found: dict[int, Features] = {}
    for cell in cells:
        offset = cell - last
        values = _by_offset(offset, behind=behind)
        if offset == 1 and back:
            values["next after going back"] = 1.0
        elif offset == 1 and not behind:
            values["used to go on"] = on
        elif offset == 0 and trail.failed:
            values["same, failed"] = 1.0
        if cell == furthest + 1 and offset != 1:
            values["first new one"] = 1.0
            if back:
                values["first new one after going back"] = 1.0
        if cell == before and offset != 1:
            values["back to the one before"] = 1.0
        if before is not None and back and cell == before + 1:
            values["on from the one before"] = 1.0
        if cell in trail.edited:
            values["edited"] = 1.0
        found[cell] = values
    return found


def _by_offset(offset: int, *, behind: bool) -> dict[str, float]:
    if offset == 0:
        return {"same": 1.0}
    if offset < 0:
        values = {"distance back": math.log1p(-offset)}
        if offset == -1:
            values["one before"] = 1.0
        return values
    if offset == 1:
        return {"ahead": 1.0, "next behind" if behind else "next": 1.0}
    values = {"ahead": 1.0, "distance ahead": math.log(offset)}
    if behind:
        values["distance ahead, behind"] = math.log(offset)
    if offset == 2:
        values["one skipped"] = 1.0
    return values


def _goes_on(run: Sequence[int]) -> float:
    """Return how much oftener than usual (3 in 4) this session went on to the next new cell."""
    went = seen = 0
    furthest = run[0] if run else 0
    for before, after in pairwise(run):
        if before == furthest:
            seen += 1
            went += after == before + 1
        furthest = max(furthest, after)
    return (went + 3) / (seen + 4) - 0.75


def _kind(before: int, after: int) -> str:
    if after == before + 1:
        return "next"
    if after == before:
        return "same"
    return "ahead" if after > before else "back"


def _with_kinds(trail: Trail, cells: Sequence[int], chances: Sequence[float]) -> list[float]:
    """Mix in how often this session's moves were of each kind."""
    counts = Counter(_kind(a, b) for a, b in pairwise(trail.positions))
    last = trail.positions[-1] if trail.positions else -1
    kinds = [_kind(last, cell) for cell in cells]
    model: dict[str, float] = {}
    for kind, chance in zip(kinds, chances, strict=True):
        model[kind] = model.get(kind, 0.0) + chance
    mixed = {kind: KIND_COUNTS * chance + counts[kind] for kind, chance in model.items()}
    total = sum(mixed.values())
    return [
        chance * mixed[kind] / (total * model[kind]) if model[kind] else 0.0
        for kind, chance in zip(kinds, chances, strict=True)
    ]


def _with_pairs(trail: Trail, cells: Sequence[int], chances: Sequence[float]) -> list[float]:
    """Mix in where this notebook's users went from the same cell before."""
    if not trail.positions:
        return list(chances)
    last = trail.positions[-1]
    moves = (*trail.earlier, *pairwise(trail.positions))
    counts = Counter(after for before, after in moves if before == last)
    known = [counts[cell] for cell in cells]
    total = PAIR_COUNTS + sum(known)
    return [(PAIR_COUNTS * c + n) / total for c, n in zip(chances, known, strict=True)]


def _check(trail: Trail, others: Sequence[int]) -> None:
    for position in (*trail.positions, *others):
        if not 0 <= position < trail.size:
            raise BadInputError(
                f"{NAME}: position {position} is not in a document of {trail.size} code cells; "
                "read the document again"
            )
