"""Driver checkpoints of this server's kernels: as far as proven, and remembered over a crash."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..control.loop import ControlLoop
from ..control.ports import Resumed, Suspended
from ..devices.cuda_checkpoint import CheckpointRecord, CudaCheckpoint
from ..devices.cuda_checkpoint_proof import ProofFile
from ..errors import CheckpointRefusedError, GpuPredictError, StoreError
from ..store.trace_store import Store

log = logging.getLogger(__name__)

REFUSED_S = 30.0
"""How long after a refusal the same is not asked of a kernel again; doubles.

Most of what refuses passes.
"""

REFUSED_LIMIT_S = 600.0


@dataclass(frozen=True)
class _Refused:
    """The last of several refusals in a row."""

    until_s: float
    why: str
    times: int


class DriverCheckpoints:
    """`control.ports.Checkpoints` over the driver's helper; records are kept in the store.

    Parameters
    ----------
    driver_version
        Returns the version of the driver that answers now.
    lock_timeout_s
        How long GPU work under way is waited for.
    enabled
        Whether kernels may be suspended; what is suspended is brought back in any case.
    """

    def __init__(
        self,
        loop: ControlLoop,
        store: Store,
        proof: ProofFile,
        driver_version: Callable[[], str],
        *,
        lock_timeout_s: float = 10.0,
        enabled: bool = True,
    ) -> None:
        self._loop, self._store, self._proof = loop, store, proof
        self._enabled = enabled
        self._driver_version = driver_version
        self._lock_timeout_s = lock_timeout_s
        self._refused: dict[str, dict[bool, _Refused]] = {}
        """By kernel, and by whether it was in the middle of a cell."""
        self._mid_cell: set[str] = set()
        self._kept: set[str] = set()
        self._kept_as_held: set[str] = set()
        self._cuda = CudaCheckpoint(self._keep, self._left_behind())

    # ------------------------------------------------------------------ what is possible

    def why_not(self, kernel_id: str, *, mid_cell: bool) -> str | None:
        """Return why the driver would not suspend the kernel now, by what is known."""
        if not self._enabled:
            return "it is switched off (GpuPredict.checkpoint)"
        proof, fault = self._proof.read()
        if proof is None:
            return fault
        version = self._driver_version()
        lease = self._loop.leases.get(kernel_id)
        if lease is None:
            return "it is on no GPU"
        why = proof.why_not(version, self._loop.gpu_name(lease.gpu_uuid), mid_cell=mid_cell)
        if why is not None:
            return why
        failure = self._cuda.record(kernel_id).why_not(version, "suspend")
        if failure is not None:
            return f"it failed {failure.times} times under driver {version} ({failure.why})"
        refused = self._refused.get(kernel_id, {}).get(mid_cell)
        if refused is None or self._loop.clock() >= refused.until_s:
            return None
        return refused.why

    def why_not_move(self, kernel_id: str, target_uuid: str) -> str | None:
        """Return why the driver would not bring it back on another GPU of its kind."""
        if list(self.gpus(kernel_id)) == [target_uuid]:
            return None  # that is where it was: no other GPU is needed
        if not self._enabled:
            return "it is switched off (GpuPredict.checkpoint)"
        proof, fault = self._proof.read()
        if proof is None:
            return fault
        version, name = self._driver_version(), self._loop.gpu_name(target_uuid)
        why = proof.why_not_move(version, name)
        failure = self._cuda.record(kernel_id).why_not(version, "move")
        if why is None and failure is not None:
            return f"moving it failed {failure.times} times under driver {version} ({failure.why})"
        return why

    # ------------------------------------------------------------------ doing it

    async def suspend(
        self, kernel_id: str, root: int, *, mid_cell: bool, to_other_gpu: bool = False
    ) -> Suspended:
        """Take the processes below `root` off their GPUs; see `control.ports.Checkpoints`."""
        if mid_cell:
            self._mid_cell.add(kernel_id)
        else:
            self._mid_cell.discard(kernel_id)
        # A kernel that is forgotten meanwhile, and a new one under its id, have another.
        refused = self._refused.setdefault(kernel_id, {})
        began = time.perf_counter()
        try:
            done = await self._cuda.suspend(
                kernel_id, root, lock_timeout_s=self._lock_timeout_s, to_other_gpu=to_other_gpu
            )
        except CheckpointRefusedError as error:
            times = refused[mid_cell].times if mid_cell in refused else 0
            pause_s = min(REFUSED_LIMIT_S, REFUSED_S * 2 ** min(times, 16))
            refused[mid_cell] = _Refused(self._loop.clock() + pause_s, str(error), times + 1)
            raise
        refused.pop(mid_cell, None)
        seconds = done.seconds.get("checkpoint", 0.0)
        # How long the kernel's own work was waited for says nothing about the next time.
        waited_s = done.seconds.get("lock", 0.0)
        overhead_s = max(0.0, time.perf_counter() - began - seconds - waited_s)
        return Suspended(done.bytes, seconds, overhead_s, done.left_bytes)

    async def resume(self, kernel_id: str, *, gpu_map: Mapping[str, str] | None = None) -> Resumed:
        """Bring a kernel back; see `control.ports.Checkpoints`."""
        began = time.perf_counter()
        done = await self._cuda.resume(kernel_id, gpu_map=gpu_map)
        self._mid_cell.discard(kernel_id)
        seconds = done.seconds.get("restore", 0.0)
        overhead_s = max(0.0, time.perf_counter() - began - seconds)
        return Resumed(done.bytes, seconds, overhead_s)

    async def recover(self, kernel_ids: Sequence[str]) -> None:
        """Complete or undo what a crash cut short; what fails is tried again when it is needed."""
        for kernel_id in kernel_ids:
            try:
                await self._cuda.recover(kernel_id)
            except GpuPredictError as error:
                log.warning("Kernel %s may still be held by the driver: %s", kernel_id, error)

    async def close(self) -> None:
        """Wait for what is under way."""
        await self._cuda.close()

    # ------------------------------------------------------------------ what is known

    def held(self, kernel_id: str) -> bool:
        """Whether the driver may be holding the kernel."""
        return self._cuda.record(kernel_id).may_hold

    def suspended(self, kernel_id: str) -> bool:
        """Whether the kernel is wholly suspended, by the last that was seen."""
        return self._cuda.record(kernel_id).suspended

    def gpus(self, kernel_id: str) -> dict[str, int]:
        """Return what a held kernel had on each GPU, in bytes."""
        held: dict[str, int] = {}
        for process in self._cuda.record(kernel_id).processes:
            for uuid, size in process.gpus.items():
                held[uuid] = held.get(uuid, 0) + size
        return held

    def in_mid_cell(self, kernel_id: str) -> bool:
        """Whether a held kernel was suspended in the middle of a cell."""
        return kernel_id in self._mid_cell and self.held(kernel_id)

    def forget(self, kernel_id: str) -> None:
        """Drop what is known of a kernel that has ended."""
        self._cuda.forget(kernel_id)
        self._refused.pop(kernel_id, None)
        self._mid_cell.discard(kernel_id)
        self._kept_as_held.discard(kernel_id)
        if kernel_id in self._kept:
            self._kept.discard(kernel_id)
            # At once: a restarted kernel has the same id, and its record must not be dropped.
            try:
                self._store.forget_checkpoint(kernel_id)
            except StoreError as error:
                log.warning("The record of kernel %s was not dropped: %s", kernel_id, error)

    # ------------------------------------------------------------------ keeping it

    def _keep(self, record: CheckpointRecord) -> None:
        """Write a record down before anything else happens, not with the next writes."""
        new = record.kernel_id not in self._kept
        if new and not record.may_hold and not record.failures:
            return
        data = {"record": record.to_json(), "mid_cell": record.kernel_id in self._mid_cell}
        try:
            self._store.save_checkpoint(record.kernel_id, data)
        except StoreError as error:
            if record.may_hold and record.kernel_id not in self._kept_as_held:
                raise  # nothing was touched yet, and nothing may be that is not written down
            # What is written says that it may be held, which is true or does no harm.
            log.warning("The record of kernel %s was not kept: %s", record.kernel_id, error)
            return
        self._kept.add(record.kernel_id)
        if record.may_hold:
            self._kept_as_held.add(record.kernel_id)
        else:
            self._kept_as_held.discard(record.kernel_id)

    def _left_behind(self) -> list[CheckpointRecord]:
        """Return the records of earlier servers; those of kernels nobody knows are dropped."""
        known = {kernel.kernel_id for kernel in self._store.kernels()}
        records = []
        for kernel_id, data in self._store.checkpoints().items():
            record = _record(kernel_id, data)
            if record is None or kernel_id not in known:
                self._store.forget_checkpoint(kernel_id)
                continue
            self._kept.add(kernel_id)
            if record.may_hold:
                self._kept_as_held.add(kernel_id)
            records.append(record)
            if data.get("mid_cell") is True:
                self._mid_cell.add(kernel_id)
        return records


def _record(kernel_id: str, data: Mapping[str, Any]) -> CheckpointRecord | None:
    try:
        return CheckpointRecord.from_json(data["record"])
    except (KeyError, ValueError, TypeError) as error:
        log.warning("What was kept of kernel %s's checkpoint is no record: %s", kernel_id, error)
        return None
