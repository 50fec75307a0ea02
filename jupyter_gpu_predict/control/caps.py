"""What each kernel's allocator was told it may take, so that no two take the same memory.

A GPU's memory is never promised twice: a cap rises only once those that have to fall for it have
fallen. Simulated GPUs have no allocator that could be held to a cap, so nothing is told there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.allocation.caps import Share, caps
from ..errors import GpuPredictError
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""How long a kernel may take to lower its cap before it counts as keeping what it was told."""

NOT_WORTH = 100
"""A cap that would rise by less than this fraction (1/100) of the GPU is left as it is."""


@dataclass
class _Told:
    """The cap of one kernel in bytes: what may be in force, was said last, and was confirmed."""

    gpu_uuid: str
    in_force: int
    said: int
    confirmed: int | None = None


class Caps:
    """Keeps the caps of all kernels and tells them when they change."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self._told: dict[str, _Told] = {}
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ what is so

    def in_force(self, gpu_uuid: str) -> dict[str, int]:
        """Return the bytes that each kernel's allocator may have taken at most by now.

        Kernels that the driver has are left out: they can take nothing until they are back.
        """
        return {
            kernel_id: told.in_force
            for kernel_id, told in self._told.items()
            if told.gpu_uuid == gpu_uuid and not self._away(kernel_id)
        }

    def wanted(self, gpu_uuid: str, running: str | None = None) -> dict[str, int]:
        """Return the cap that each kernel on a GPU should have; `running` is about to run."""
        now = self.loop.clock()
        shares = [
            Share(
                r.kernel_id,
                self._held(r),
                self._used(r, gpu_uuid),
                r.kernel_id == running or ((r.busy or r.about_to_run(now)) and not r.checkpointed),
            )
            for r in self.loop.kernels.values()
            if self._gpu(r) == gpu_uuid
        ]
        return caps(self._for_all(gpu_uuid), shares)

    def forget(self, kernel_id: str) -> None:
        """Drop what a kernel was told: its process is over."""
        self._told.pop(kernel_id, None)

    # ------------------------------------------------------------------ changing it

    async def make_room(self, record: KernelRecord, gpu_uuid: str) -> int | None:
        """Lower its neighbours' caps and return the one that a kernel is to be told with its lease.

        It counts as in force from now on; `confirm` says that the kernel has heard it. ``None``
        where caps are of no use. What a neighbour does not give up is not the kernel's, but it gets
        what its lease holds in any case.
        """
        if self.loop.backend.simulated or not record.port.has_agent:
            return None
        async with self._lock:
            wanted = self.wanted(gpu_uuid, running=record.kernel_id)
            await self._lower(gpu_uuid, {k: c for k, c in wanted.items() if k != record.kernel_id})
            return self._raise(record, gpu_uuid, wanted.get(record.kernel_id, 0))

    def confirm(self, kernel_id: str, cap_bytes: int | None, reserved_bytes: int = 0) -> None:
        """Note that a kernel has heard its cap, and what it has reserved whatever that is."""
        told = self._told.get(kernel_id)
        # It may have been told another meanwhile: an answer can take as long as a restore.
        if told is not None and cap_bytes is not None and told.said == cap_bytes:
            told.in_force, told.confirmed = max(cap_bytes, reserved_bytes), cap_bytes

    async def park(self, record: KernelRecord, gpu_uuid: str) -> None:
        """Hold a kernel to what it has, before the driver takes it: so it comes back with that."""
        if not self.loop.backend.simulated and record.port.has_agent:
            async with self._lock:
                await self._lower(gpu_uuid, {record.kernel_id: self._used(record, gpu_uuid)})

    def refresh(self) -> None:
        """Tell, in the background, the caps that changed because cells began or ended."""
        if self.loop.backend.simulated or self._refreshing is not None:
            return
        if all(not self._changed(status.uuid) for status in self.loop.statuses):
            return

        async def all_gpus() -> None:
            try:
                for status in self.loop.statuses:
                    await self.settle(status.uuid)
            finally:
                self._refreshing = None

        self._refreshing = asyncio.create_task(all_gpus())

    async def close(self) -> None:
        """Stop telling."""
        if (task := self._refreshing) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def settle(self, gpu_uuid: str) -> None:
        """Bring every cap on a GPU to what it should be, those that fall first."""
        async with self._lock:
            await self._lower(gpu_uuid, self._changed(gpu_uuid))
            rising = []
            for kernel_id, cap in self._changed(gpu_uuid).items():
                record = self.loop.kernels.get(kernel_id)
                told = self._told.get(kernel_id)
                if record is not None and (told is None or told.confirmed != cap):
                    rising.append((record, self._raise(record, gpu_uuid, cap)))
            await asyncio.gather(*(self._tell(record, cap) for record, cap in rising))

    # ------------------------------------------------------------------ steps

    def _changed(self, gpu_uuid: str) -> dict[str, int]:
        """Return the caps that a kernel should hear."""
        total = next(s.total_bytes for s in self.loop.statuses if s.uuid == gpu_uuid)
        changed = {}
        for kernel_id, cap in self.wanted(gpu_uuid).items():
            record = self.loop.kernels[kernel_id]
            if not record.port.has_agent or record.working is not None or self._away(kernel_id):
                continue
            told = self._told.get(kernel_id)
            unheard = told is None or told.confirmed is None or told.gpu_uuid != gpu_uuid
            rise = 0 if told is None else cap - told.in_force
            if told is not None and rise > 0:
                rise = max(0, self._possible(record, gpu_uuid, cap) - told.in_force)
            if unheard or rise < 0 or rise > total // NOT_WORTH:
                changed[kernel_id] = cap
        return changed

    async def _lower(self, gpu_uuid: str, wanted: Mapping[str, int]) -> None:
        """Tell, all at once, the caps that fall."""
        falling = []
        for kernel_id, cap in wanted.items():
            told, record = self._told.get(kernel_id), self.loop.kernels.get(kernel_id)
            if told is None or record is None or self._away(kernel_id):
                continue
            if told.gpu_uuid == gpu_uuid and cap < told.in_force:
                falling.append(self._tell(record, cap))
        await asyncio.gather(*falling)

    def _raise(self, record: KernelRecord, gpu_uuid: str, wanted: int) -> int:
        """Return what of a cap can be had, and count it as in force."""
        cap = self._possible(record, gpu_uuid, wanted)
        before = self.in_force(gpu_uuid).get(record.kernel_id, 0)
        self._told[record.kernel_id] = _Told(gpu_uuid, max(before, cap), cap)
        return cap

    def _possible(self, record: KernelRecord, gpu_uuid: str, wanted: int) -> int:
        """Return what of a cap can be had beside those in force."""
        others = self.in_force(gpu_uuid)
        others.pop(record.kernel_id, None)
        total = self._for_all(gpu_uuid)
        room = total - sum(others.values())
        # Its lease is its own beside what others might still take, but not what they have taken.
        sure = total - sum(self._for_certain(k, gpu_uuid) for k in others)
        return max(min(wanted, room), min(self._held(record), sure), 0)

    async def _tell(self, record: KernelRecord, cap_bytes: int) -> None:
        """Tell a kernel its cap; one that does not answer may have the one before still."""
        told = self._told.get(record.kernel_id)
        if told is not None:
            told.said, told.confirmed = cap_bytes, None
        try:
            answer = await record.port.cap(cap_bytes, ANSWER_S)
        except GpuPredictError as error:
            log.warning("Kernel %s did not take its cap: %s", record.kernel_id, error)
            return
        self.confirm(record.kernel_id, cap_bytes, int(answer.get("reserved_bytes", 0)))

    # ------------------------------------------------------------------ figures

    def _gpu(self, record: KernelRecord) -> str | None:
        """Return the GPU that a kernel's allocator takes from."""
        lease = self.loop.leases.get(record.kernel_id)
        if lease is not None:
            return lease.gpu_uuid
        told = self._told.get(record.kernel_id)
        return None if told is None else told.gpu_uuid

    def _away(self, kernel_id: str) -> bool:
        """Whether the driver has a kernel, which cannot take anything then."""
        record = self.loop.kernels.get(kernel_id)
        return record is not None and record.checkpointed

    def _held(self, record: KernelRecord) -> int:
        lease = self.loop.leases.get(record.kernel_id)
        return 0 if lease is None else lease.held_bytes

    def _used(self, record: KernelRecord, gpu_uuid: str) -> int:
        """Return what a kernel has taken: while its cell runs only its processes show it.

        What they have beyond its cap is not the allocator's, but e.g. the device's context. What
        an idle one has beyond its tensors is kept for later, and given back when its cap falls.
        """
        used = 0 if record.checkpointed else record.used_bytes
        told = self._told.get(record.kernel_id)
        if told is None or told.gpu_uuid != gpu_uuid or record.checkpointed or not record.busy:
            return used
        return max(used, min(record.process_bytes.get(gpu_uuid, 0), told.in_force))

    def _for_certain(self, kernel_id: str, gpu_uuid: str) -> int:
        """Return what a kernel has of a GPU for certain; it may have been told more."""
        told, record = self._told[kernel_id], self.loop.kernels.get(kernel_id)
        if told.confirmed is not None or record is None:
            return told.in_force
        return max(self._held(record), self._used(record, gpu_uuid))

    def _for_all(self, gpu_uuid: str) -> int:
        """Return the GPU's bytes without those that no cap can hold."""
        status = self.loop.gpu(gpu_uuid)
        records = list(self.loop.kernels.values())
        arriving = sum(r.target_bytes for r in records if r.target_gpu_uuid == gpu_uuid)
        own = 0
        for record in records:
            if self._gpu(record) == gpu_uuid:
                has = max(self._held(record), self._used(record, gpu_uuid))
                own += min(record.process_bytes.get(gpu_uuid, 0), has)
        return status.total_bytes - max(0, (status.used_bytes or 0) - own) - arriving
