"""Moves to another GPU by the cheaper of two rungs: the driver's, or a relaunch."""

from __future__ import annotations

import time
from typing import Any

from ..control.records import KernelRecord
from ..control.rungs import choose_move
from ..core.model import Rung
from ..errors import RefusedError
from .move import Progress
from .relaunch import Relauncher


class Mover(Relauncher):
    """`control.ports.Moves`: by the driver where that is proven and cheaper, else by relaunch."""

    async def migrate(
        self,
        kernel_id: str,
        target_gpu_uuid: str,
        reason: str,
        progress: Progress | None = None,
        *,
        wanted_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Move the kernel to another GPU, under the same kernel id.

        Raises
        ------
        GpuPredictError
            If the move failed; the kernel goes on where it was.
        """
        record, _ = self._checked(kernel_id, target_gpu_uuid, wanted_bytes)
        try:
            choice = choose_move(self.loop, record, target_gpu_uuid)
        except RefusedError:
            # Where it is a relaunch that cannot be, that says it better itself.
            if record.checkpointed:
                raise
            choice = None
        if choice is None or choice.rung is Rung.RELAUNCH or record.working is not None:
            return await super().migrate(
                kernel_id, target_gpu_uuid, reason, progress, wanted_bytes=wanted_bytes
            )
        return await self._by_driver(
            record, target_gpu_uuid, f"{reason} ({choice.reason})", wanted_bytes
        )

    async def _by_driver(
        self, record: KernelRecord, target: str, reason: str, wanted_bytes: int | None
    ) -> dict[str, Any]:
        loop = self.loop
        lease = loop.leases.get(record.kernel_id)
        source = None if lease is None else lease.gpu_uuid
        move = {
            "kernel_id": record.kernel_id,
            "notebook": record.notebook,
            "source_gpu_uuid": source,
            "target_gpu_uuid": target,
        }
        wanted = wanted_bytes or record.used_bytes
        record.working, record.target_gpu_uuid = "migrate", target
        record.target_bytes = 0 if record.checkpointed else wanted
        loop.event("migration_started", **move, gpu_uuid=source, reason=reason)
        began = time.perf_counter()
        try:
            pause_s = await loop.switching.move(record, target, wanted)
        except BaseException as error:
            why = str(error) or type(error).__name__
            loop.event("migration_failed", **move, gpu_uuid=source, reason=why)
            raise
        finally:
            record.working = None
            record.target_gpu_uuid, record.target_bytes = None, 0
            loop.wake()
        timing = {"seconds": time.perf_counter() - began, "pause_s": pause_s, "notes": []}
        rung = Rung.DRIVER_CHECKPOINT.value
        loop.event("migrated", **move, **timing, gpu_uuid=target, rung=rung, reason=reason)
        return {**move, **timing, "gpu_uuid": target, "rung": rung}
