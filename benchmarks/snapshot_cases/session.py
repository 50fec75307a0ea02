"""What a session is: cells that build it, changes to it, and how to tell that it came back."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Namespace = Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """A cell that changes part of the session; `nbytes` of its memory where that is known."""

    label: str
    cell: str
    nbytes: int | None = None


@dataclass(frozen=True)
class Session:
    """A session in cells.

    `values` are thunks of which each must give after a restore what it gave before the save;
    `aliases` must each be true, are asked after all values, and may write to the session.
    `doomed` are variables that nothing can be expected to save: they are right if they come back
    as what they were, or as something that says so when used.
    """

    libraries: tuple[str, ...]
    cells: tuple[str, ...]
    changes: tuple[Change, ...]
    values: Callable[[Namespace], dict[str, Callable[[], object]]]
    aliases: Callable[[Namespace], dict[str, Callable[[], object]]]
    classes: str | None = None
    doomed: tuple[str, ...] = ()
    extra_methods: tuple[str, ...] = ()


def load(case: str, scale: float) -> Session:
    """Return the session of that name with its sizes multiplied by `scale`."""
    return importlib.import_module(f"snapshot_cases.states.{case}").session(scale)


def evaluated(thunks: Mapping[str, Callable[[], object]]) -> dict[str, list[str]]:
    """Evaluate every thunk to ``["is", repr]``, or to ``["failed", error]``."""
    found = {}
    for name, thunk in thunks.items():
        try:
            found[name] = ["is", repr(thunk())]
        except Exception as error:
            found[name] = ["failed", f"{type(error).__name__}: {error}"[:200]]
    return found


def checksum(array: Any) -> int:
    """Return a checksum of an array's or a tensor's elements in their order."""
    import numpy as np

    detach = getattr(array, "detach", None)
    if detach is not None:
        array = detach().numpy()
    if array.dtype == object:
        return zlib.crc32(repr(array.tolist()).encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view("u1"))
