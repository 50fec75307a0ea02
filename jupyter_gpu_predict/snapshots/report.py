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
    `snapshots.digest.digest` gives it; a tombstone has one where that costs next to nothing.
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
    """What a capture saved.

    `not_saved` names what of the extra state could not be saved. `bytes_written` counts what was
    new to the store, `total_bytes` all that the snapshot holds, and `writing_s` is how much of the
    `seconds` was spent on reading memory and writing.
    """

    snapshot_id: str
    name: str
    variables: tuple[VariableReport, ...]
    not_saved: tuple[str, ...]
    bytes_written: int
    total_bytes: int
    seconds: float
    writing_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RestoredVariable:
    """What became of a variable.

    ``"mismatch"`` means that it was loaded but its digest is not the one taken when it was saved;
    ``"recomputed"`` that it was not saved and its cells were run again. `digest` is that of the
    value now, or what is known of the one that a tombstone stands for.
    """

    name: str
    type_name: str
    status: Literal["restored", "tombstone", "mismatch", "recomputed"]
    reason: str | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore brought back.

    `extra` is what capture was given, less what is `not_restored`. `differences` has a sentence for
    each library that is not here in the version the snapshot was made with. `left_out` names the
    tombstones of what could have been saved and is to be made again instead. `reading_s` is how
    much of the `seconds` was spent on the store.
    """

    snapshot_id: str
    name: str
    variables: tuple[RestoredVariable, ...]
    extra: dict[str, Any]
    not_restored: tuple[str, ...]
    bytes_read: int
    seconds: float
    differences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    reading_s: float = 0.0


def type_name(value: Any) -> str:
    """Return a value's type as a user would write it, e.g. ``"torch.nn.Linear"``."""
    kind = type(value)
    # A metaclass of the user's may answer for attributes as it likes.
    module = type.__getattribute__(kind, "__module__")
    name = str(type.__getattribute__(kind, "__qualname__"))
    plain = module in ("builtins", "__main__") or not isinstance(module, str)
    return name if plain else f"{module}.{name}"
