"""What capture and restore tell about each variable; plain data that goes into JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class VariableReport:
    """What was saved of a variable.

    `reason` says why nothing was (``status == "tombstone"``), or what of it differs, such as
    memory no longer shared. `path` is where inside the variable the fault lies. `nbytes` counts
    its stream and its memory, shared memory in each variable that shares it. `digest` is as
    `snapshots.digest.digest` gives it.
    """

    name: str
    type_name: str
    status: Literal["saved", "tombstone"]
    reason: str | None
    nbytes: int
    digest: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What a capture saved; `not_saved` names what of the extra state could not be saved."""

    snapshot_id: str
    name: str
    variables: tuple[VariableReport, ...]
    not_saved: tuple[str, ...]
    bytes_written: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RestoredVariable:
    """What became of a variable.

    ``"mismatch"`` means that it was loaded but its digest is not the one taken when it was saved.
    """

    name: str
    type_name: str
    status: Literal["restored", "tombstone", "mismatch"]
    reason: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore brought back; `extra` is what capture was given, less what `not_restored`."""

    snapshot_id: str
    name: str
    variables: tuple[RestoredVariable, ...]
    extra: dict[str, Any]
    not_restored: tuple[str, ...]
    bytes_read: int
    seconds: float


def type_name(value: Any) -> str:
    """Return a value's type as a user would write it, e.g. ``"torch.nn.Linear"``."""
    kind = type(value)
    module = kind.__module__
    plain = module in ("builtins", "__main__") or not isinstance(module, str)
    return kind.__qualname__ if plain else f"{module}.{kind.__qualname__}"
