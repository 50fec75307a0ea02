"""Taking device memory back inside a kernel and bringing it back (rung 1 of the ladder).

One code path for every device; `simulated` and `cuda` say what differs. Everything here is pure
standard library and works on torch only where the user has imported it.
"""

from __future__ import annotations

from .exports import install_export_tracking
from .holdings import Holdings, Skipped, scan
from .offloader import Offloader
from .reports import RestoreReport, SuspendReport
from .uses import UseLog
from .work import tasks_at_work, threads_at_work

__all__ = [
    "Holdings",
    "Offloader",
    "RestoreReport",
    "Skipped",
    "SuspendReport",
    "UseLog",
    "install_export_tracking",
    "scan",
    "tasks_at_work",
    "threads_at_work",
]
