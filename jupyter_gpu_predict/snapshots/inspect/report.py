"""What a verification found; plain data that goes into JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import SnapshotRefusedError
from ..signing import check_signature, sign
from ..stores import SnapshotStore

NOTE = "verified"


@dataclass(frozen=True, slots=True)
class VerifiedVariable:
    """What became of a variable.

    `status` is ``"same"``, ``"differs"``, ``"not loaded"``, or ``"not saved"`` for one that the
    snapshot itself says it does not hold; `reason` says where and how.
    """

    name: str
    type_name: str
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    `verified` is true if every variable that the snapshot says it holds was loaded in a fresh
    process and was the same there. `problems` are those that belong to no variable, `differences`
    libraries of another version.
    """

    snapshot_id: str
    verified: bool
    variables: tuple[VerifiedVariable, ...]
    problems: tuple[str, ...]
    differences: tuple[str, ...]
    bytes_read: int
    seconds: float
    checked_s: float
    python: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> VerifyReport:
        """Return the report that `to_dict` wrote."""
        parts = {name: found[name] for name in cls.__dataclass_fields__}
        parts["variables"] = tuple(VerifiedVariable(**v) for v in parts["variables"])
        for name in ("problems", "differences"):
            parts[name] = tuple(parts[name])
        return cls(**parts)


def keep_report(store: SnapshotStore, report: VerifyReport, key: bytes) -> None:
    """Keep a report beside its snapshot, signed."""
    content = {"id": report.snapshot_id, "kind": NOTE, **report.to_dict()}
    document = {"verified": report.verified, **sign(content, key)}
    store.write_note(report.snapshot_id, NOTE, document)


def read_report(store: SnapshotStore, snapshot_id: str, key: bytes) -> VerifyReport | None:
    """Return the last report on a snapshot; ``None`` if there is none that was signed with `key`.

    Raises
    ------
    StorageUnavailableError
        If the store does not answer.
    """
    note = store.read_note(snapshot_id, NOTE)
    if note is None:
        return None
    try:
        content = check_signature(note, key, snapshot_id)
        if content.get("kind") != NOTE or content["verified"] is not note.get("verified"):
            return None
        return VerifyReport.from_dict(content)
    except (SnapshotRefusedError, KeyError, TypeError):
        return None
