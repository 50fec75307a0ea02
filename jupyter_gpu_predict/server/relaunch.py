"""Moving kernels to other processes on other GPUs (rung 3)."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

from ..control.records import KernelRecord
from ..core.allocation.capacity import takes_new_leases
from ..core.migration.machine import request
from ..core.model import Lease, LeaseState, Rung
from ..core.sizes import format_bytes
from ..errors import ConflictError, UnsatisfiableError
from .fleet import Fleet
from .move import Move, Progress
from .works import free_kernel

log = logging.getLogger(__name__)


class Relauncher:
    """`control.ports.Moves` over the kernel link; every path to a move is here."""

    def __init__(self, fleet: Fleet, remember: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.loop = fleet.loop
        self._remember = remember

    def choose_target(self, record: KernelRecord) -> str:
        """Return the GPU with the most room that the kernel could move to.

        Raises
        ------
        UnsatisfiableError
            If there is no other GPU with room.
        """
        lease = self.loop.leases.get(record.kernel_id)
        rooms = sorted(
            (
                (self.loop.free_bytes(g.uuid), g.uuid)
                for g in (self.loop.last_view.gpus if self.loop.last_view else ())
                if takes_new_leases(g) and (lease is None or g.uuid != lease.gpu_uuid)
            ),
            reverse=True,
        )
        if not rooms or rooms[0][0] < _moving_bytes(record, lease):
            raise UnsatisfiableError(
                f"kernel {record.kernel_id} needs {format_bytes(_moving_bytes(record, lease))} on "
                "another GPU and none has that much free; free some or reclaim an idle kernel"
            )
        return rooms[0][1]

    async def migrate(
        self,
        kernel_id: str,
        target_gpu_uuid: str,
        reason: str,
        progress: Progress | None = None,
        *,
        wanted_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Move the kernel to another GPU by relaunch, under the same kernel id.

        Raises
        ------
        GpuPredictError
            If the move failed; the old process simply goes on.
        """
        loop = self.loop
        record, lease = self._checked(kernel_id, target_gpu_uuid, wanted_bytes)
        migration = request(
            (),
            migration_id=uuid.uuid4().hex,
            former=lease,
            target_gpu_uuid=target_gpu_uuid,
            rung=Rung.RELAUNCH,
            now_s=loop.clock(),
            reason=reason,
        )
        record, link = free_kernel(self.fleet, kernel_id, "migrate")
        record.working = "migrate"
        started = time.perf_counter()
        record.target_gpu_uuid = target_gpu_uuid
        record.target_bytes = _moving_bytes(record, lease, wanted_bytes)
        move = {
            "kernel_id": kernel_id,
            "notebook": record.notebook,
            "source_gpu_uuid": lease.gpu_uuid,
            "target_gpu_uuid": target_gpu_uuid,
        }
        loop.event("migration_started", **move, gpu_uuid=lease.gpu_uuid, reason=reason)
        try:
            moving = Move(self.fleet, record, link, migration, self._remember)
            pause_s = await moving.run(progress or (lambda _: None))
        except BaseException as error:
            why = str(error) or type(error).__name__
            loop.event("migration_failed", **move, gpu_uuid=lease.gpu_uuid, reason=why)
            raise
        finally:
            record.working = None
            record.target_gpu_uuid, record.target_bytes = None, 0
            loop.wake()
        timing = {
            "seconds": time.perf_counter() - started,
            "pause_s": pause_s,
            "notes": moving.notes,
        }
        loop.event("migrated", **move, **timing, gpu_uuid=target_gpu_uuid, reason=reason)
        return {**move, **timing, "gpu_uuid": target_gpu_uuid, "rung": Rung.RELAUNCH.value}

    def _checked(
        self, kernel_id: str, target: str, wanted_bytes: int | None
    ) -> tuple[KernelRecord, Lease]:
        """Return the kernel and its lease if it can go to GPU `target`."""
        loop = self.loop
        record, status = loop.kernel(kernel_id), loop.gpu(target)
        lease = loop.leases.get(kernel_id)
        if lease is None:
            raise ConflictError(f"kernel {kernel_id} is on no GPU, so there is nothing to move")
        if lease.gpu_uuid == target:
            raise ConflictError(f"kernel {kernel_id} is on GPU {target} already")
        if status.lost or target in loop.cordoned:
            raise ConflictError(
                f"GPU {target} takes no kernels: {loop.cordoned.get(target, 'it is lost')}; "
                "uncordon it or choose another"
            )
        wanted = _moving_bytes(record, lease, wanted_bytes)
        free = self.loop.free_bytes(target)
        if wanted > free:
            raise ConflictError(
                f"GPU {target} has {format_bytes(max(0, free))} free and kernel {kernel_id} "
                f"needs {format_bytes(wanted)}; reclaim an idle kernel there"
            )
        return record, lease


def _moving_bytes(record: KernelRecord, lease: Lease | None, wanted: int | None = None) -> int:
    """Return what is set aside for the kernel on its new GPU."""
    if lease is None:
        return 0
    if lease.state is LeaseState.SUSPENDED:
        return lease.resident_bytes
    return max(wanted or 0, record.used_bytes)
