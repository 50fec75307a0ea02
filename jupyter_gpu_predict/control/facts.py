"""What really is: read from devices and kernels, and booked whatever was planned."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..core.model import DemandSample, GpuStatus, LeaseState, RiskLevel
from ..core.power import PowerAccounts
from ..core.risk import Risk, assess
from .power import read_power
from .records import KernelRecord

if TYPE_CHECKING:
    from .loop import ControlLoop

SAMPLE_S = 5.0
"""Grain of the demand series, `core.model.STEP_S`."""


class Facts:
    """The observing half of the control loop."""

    def __init__(self, loop: ControlLoop) -> None:
        self.loop = loop
        self.power = PowerAccounts()
        self._sampled_s = 0.0

    async def gather(self) -> None:
        """Read devices, let go of dead kernels, book what the others hold, take samples."""
        switched = await self.read_devices()
        await self._bury_the_dead()
        await self._note_facts(switched)
        self._sample()

    async def read_devices(self) -> set[str]:
        """Read every GPU and judge its risk.

        Returns the kernels that were on their way off or onto a GPU, of which the reading tells
        nothing.
        """
        memory: dict[str, dict[int, int]] = {}
        for record in self.loop.kernels.values():
            lease, pid = self.loop.leases.get(record.kernel_id), record.port.pid
            if lease is not None and pid is not None:
                memory.setdefault(lease.gpu_uuid, {})[pid] = record.used_bytes
        self.loop.backend.account(memory)
        before = {s.uuid: s for s in self.loop.statuses}
        records = list(self.loop.kernels.values())
        switches = [(r.working, r.switches) for r in records]
        self.loop.statuses, held = await asyncio.to_thread(self._read, records)
        switched = set()
        for record, was, (bytes_by_gpu, processes) in zip(records, switches, held, strict=True):
            if was != (None, record.switches):
                switched.add(record.kernel_id)
            if was[1] != record.switches:
                continue
            record.process_bytes, record.gpu_processes = bytes_by_gpu, processes
            if record.kernel_id in switched:
                continue
            if not record.port.has_agent and record.ready and not record.checkpointed:
                record.used_bytes = sum(bytes_by_gpu.values())
        for status in self.loop.statuses:
            risk = assess(status.uuid, status, before.get(status.uuid), self.loop.clock())
            self._note_risk(risk)
        self.power = read_power(self.loop, self.power)
        return switched

    def _read(
        self, records: list[KernelRecord]
    ) -> tuple[tuple[GpuStatus, ...], list[tuple[dict[str, int], int]]]:
        """Return the GPUs, and what each kernel's processes have on them and how many they are."""
        statuses = self.loop.backend.read()
        real = [s for s in statuses if not s.simulated and s.processes]
        if not real:
            return statuses, [({}, 0) for _ in records]
        held = []
        for record in records:
            pids = set(record.port.pids())
            on = {s.uuid: sum(b for pid, b in s.processes if pid in pids) for s in real}
            count = len(pids & {pid for s in real for pid, _ in s.processes})
            held.append(({uuid: size for uuid, size in on.items() if size}, count))
        return statuses, held

    def _note_risk(self, risk: Risk) -> None:
        known = self.loop.risks.get(risk.gpu_uuid)
        if known is not None and known.level is RiskLevel.CRITICAL:
            return  # hard evidence stands until somebody uncordons the GPU
        self.loop.risks[risk.gpu_uuid] = risk
        if risk.level is not (RiskLevel.NONE if known is None else known.level):
            self.loop.event(
                "risk",
                gpu_uuid=risk.gpu_uuid,
                level=risk.level.value,
                evidence=list(risk.evidence),
            )

    async def _bury_the_dead(self) -> None:
        for record in list(self.loop.kernels.values()):
            if record.working is None and not await record.port.alive():
                await self.loop.kernel_ended(record.kernel_id, "its process is gone")

    async def _note_facts(self, switched: set[str]) -> None:
        """Book what kernels hold by now, whatever was planned for them."""
        for record in list(self.loop.kernels.values()):
            if record.working is not None or record.checkpointed:
                continue
            if record.kernel_id in switched:
                continue
            lease = self.loop.leases.get(record.kernel_id)
            if lease is not None:
                record.gpu_uuid = lease.gpu_uuid
            elif record.gpu_uuid is None and record.process_bytes:
                # It was launched before any GPU was known, and found one by itself.
                record.gpu_uuid = max(record.process_bytes, key=record.process_bytes.__getitem__)
            if lease is None and record.used_bytes and record.gpu_uuid is not None:
                await self._book(record, record.gpu_uuid, "it uses memory without a lease")
            elif lease is None:
                continue
            elif lease.state is LeaseState.SUSPENDED:
                # Twice in a row, since one sample may still be from before it was suspended.
                beyond = record.used_bytes > lease.resident_bytes
                if beyond and record.overdrawn:
                    await self._book(record, lease.gpu_uuid, "it uses memory while suspended")
                record.overdrawn = beyond
            elif lease.state is LeaseState.RESERVED and (record.busy or record.used_bytes):
                await self._book(record, lease.gpu_uuid, "it uses its reservation", lease.bytes)
            elif record.used_bytes > lease.bytes:
                await self._book(record, lease.gpu_uuid, "it uses more than it was granted")
            elif not record.port.has_agent and record.ready and record.used_bytes < lease.bytes:
                await self._book(record, lease.gpu_uuid, "it cannot be asked, and uses less")

    async def _book(
        self, record: KernelRecord, gpu_uuid: str, reason: str, least_bytes: int = 0
    ) -> None:
        wanted = max(least_bytes, record.used_bytes)
        lease = self.loop.leases.get(record.kernel_id)
        if lease is not None and lease.state is LeaseState.BOUND:
            await self.loop.leases.resize(record.kernel_id, wanted)
        else:
            await self.loop.leases.bind(record.kernel_id, gpu_uuid, wanted)
        self.loop.event(
            "resized",
            kernel_id=record.kernel_id,
            gpu_uuid=gpu_uuid,
            bytes=wanted,
            reason=reason,
        )

    def _sample(self) -> None:
        now = self.loop.clock()
        if now - self._sampled_s < SAMPLE_S:
            return
        self._sampled_s = now
        samples = [
            DemandSample(r.kernel_id, now, r.used_bytes, r.suspended_bytes, r.busy)
            for r in self.loop.kernels.values()
        ]
        for record, sample in zip(self.loop.kernels.values(), samples, strict=True):
            record.samples.append(sample)
        if samples:
            self.loop.later(lambda: self.loop.store.add_demand(samples))
