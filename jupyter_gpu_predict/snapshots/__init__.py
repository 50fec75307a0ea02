"""Save a session's namespace, verify it, and bring it back in another process."""

from ..errors import TombstoneError
from .capture import capture
from .digest import digest, digests
from .folder import SnapshotFolder, SnapshotInfo, validate_name
from .outside import apply_outside, capture_outside
from .quiet import busy_reasons
from .report import CaptureReport, RestoredVariable, RestoreReport, VariableReport
from .restore import restore
from .signing import load_or_create_key
from .tombstone import Tombstone

__all__ = [
    "CaptureReport",
    "RestoreReport",
    "RestoredVariable",
    "SnapshotFolder",
    "SnapshotInfo",
    "Tombstone",
    "TombstoneError",
    "VariableReport",
    "apply_outside",
    "busy_reasons",
    "capture",
    "capture_outside",
    "digest",
    "digests",
    "load_or_create_key",
    "restore",
    "validate_name",
]
