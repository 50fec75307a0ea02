"""Save a session's namespace, verify it, and bring it back in another process."""

from ..errors import TombstoneError
from .background import BackgroundCapture, SaveProgress, begin_capture
from .capture import capture
from .digest import digest, digests
from .outside import apply_outside, capture_outside
from .quiet import busy_reasons
from .register import register
from .report import CaptureReport, RestoredVariable, RestoreReport, VariableReport
from .restore import restore
from .signing import load_or_create_key
from .stores import SnapshotInfo, SnapshotStore, open_store, validate_name
from .tombstone import Tombstone

__all__ = [
    "BackgroundCapture",
    "CaptureReport",
    "RestoreReport",
    "RestoredVariable",
    "SaveProgress",
    "SnapshotInfo",
    "SnapshotStore",
    "Tombstone",
    "TombstoneError",
    "VariableReport",
    "apply_outside",
    "begin_capture",
    "busy_reasons",
    "capture",
    "capture_outside",
    "digest",
    "digests",
    "load_or_create_key",
    "open_store",
    "register",
    "restore",
    "validate_name",
]
