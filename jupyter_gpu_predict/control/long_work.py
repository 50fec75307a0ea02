"""Snapshots and moves of a plan: they take long, so they become operations."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..core.plans import Migrate, TakeSnapshot
from ..errors import ConflictError, GpuPredictError
from .operations import Progress, Work
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)

RETRY_S = 10.0
"""How long after a failed move or snapshot the next one of the same kernel may start; doubles."""

RETRY_LIMIT_S = 600.0


class LongWork:
    """Starts what a plan cannot wait for."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop

    def take_snapshot(self, action: TakeSnapshot) -> None:
        """Start to save a kernel's state."""
        loop = self.loop
        record, saves = self._free(action.kernel_id), loop.saves
        if record is None or saves is None or loop.clock() < record.no_save_before_s:
            return
        before_s = record.last_snapshot_s
        record.last_snapshot_s = loop.clock()

        async def save(progress: Progress) -> dict[str, Any]:
            try:
                saved = await saves.take_snapshot(
                    record.kernel_id, None, action.reason, cause=action.cause, progress=progress
                )
            except GpuPredictError:
                record.last_snapshot_s = before_s
                record.no_save_before_s = loop.clock() + _pause_s(record.failed_saves)
                record.failed_saves += 1
                raise
            record.failed_saves = 0
            return saved

        if self._operate("snapshot", record, save):
            record.decided(loop.clock(), "snapshot", action.reason)
        else:
            record.last_snapshot_s = before_s

    def migrate(self, action: Migrate) -> None:
        """Start to move a kernel."""
        loop = self.loop
        record, moves = self._free(action.kernel_id), loop.moves
        if record is None or moves is None or loop.clock() < record.no_move_before_s:
            return
        record.decided(loop.clock(), "migrate", action.reason)

        async def move(_: Progress) -> dict[str, Any]:
            try:
                moved = await moves.migrate(
                    record.kernel_id,
                    action.target_gpu_uuid,
                    action.reason,
                    wanted_bytes=action.bytes,
                )
            except GpuPredictError:
                record.no_move_before_s = loop.clock() + _pause_s(record.failed_moves)
                record.failed_moves += 1
                raise
            record.failed_moves = 0
            return moved

        self._operate("migrate", record, move)

    def _free(self, kernel_id: str) -> KernelRecord | None:
        record = self.loop.kernels.get(kernel_id)
        return None if record is None or record.working is not None else record

    def _operate(self, kind: str, record: KernelRecord, work: Work) -> bool:
        try:
            self.loop.operations.start(kind, record.kernel_id, work)
        except ConflictError as error:
            log.debug("%s of kernel %s not started: %s", kind, record.kernel_id, error)
            return False
        return True


def _pause_s(failures: int) -> float:
    return float(min(RETRY_LIMIT_S, RETRY_S * 2 ** min(failures, 16)))
