"""A cell run as far as running it again needs to know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

OUTSIDE = "outside"
"""The outcome of what is no cell run: variables that changed between two of them."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file that was read, as it was then."""

    path: str
    mtime_ns: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CellRun:
    """One cell run, with what was observed while it ran.

    `bound` has the names that had another object afterwards, each with its kind as
    `kernel.marks.kind_of` gives it, and `removed` those that were gone. `before` and `after` are
    fingerprints of what the source names, as far as they have any. `random` has the state that a
    random generator had before, for each that was used.
    """

    number: int
    source: str
    outcome: str
    seconds: float = 0.0
    cell_id: str | None = None
    bound: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    before: Mapping[str, str] = field(default_factory=dict)
    after: Mapping[str, str] = field(default_factory=dict)
    effects: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    random: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the run as plain data."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("bound", "before", "after"):
            found[name] = dict(found[name])
        found["inputs"] = [[i.path, i.mtime_ns, i.nbytes] for i in self.inputs]
        found["random"] = dict(self.random)
        for name in ("removed", "effects"):
            found[name] = list(found[name])
        return found


def read_runs(records: Iterable[Mapping[str, Any]]) -> list[CellRun]:
    """Return the runs that `CellRun.to_dict` wrote, in order; what is unknown is passed over.

    Raises
    ------
    ValueError
        If they are not such records.
    """
    known = {f.name for f in fields(CellRun)}
    found = []
    for record in records:
        try:
            values = {k: v for k, v in record.items() if k in known}
            values["inputs"] = tuple(Input(*i) for i in values.get("inputs", ()))
            for name in ("removed", "effects"):
                values[name] = tuple(values.get(name, ()))
            found.append(CellRun(**values))
        except (TypeError, AttributeError) as error:
            raise ValueError(f"this is no record of a cell run: {error}") from None
    return sorted(found, key=lambda run: run.number)
