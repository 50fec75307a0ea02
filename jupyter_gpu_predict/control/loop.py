"""Observe, decide, act: the one loop of the live server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..core.allocation.policy import decide
from ..core.model import CellRun, Claim, ClusterView, GpuStatus, PolicySettings
from ..core.plans import Plan
from ..core.risk import Risk
from ..errors import ConflictError, GpuPredictError, NotFoundError
from .caps import Caps
from .facts import Facts
from .forecasts import ForecastRounds
from .halted import Halted
from .leases import LeaseBook
from .observe import build_view, free_bytes
from .operations import Operations
from .ports import Checkpoints, DeviceBackend, Forecasting, Moves, Notebooks, Saves, TraceStore
from .reconciler import Reconciler
from .records import KernelRecord
from .speeds import Speeds
from .switching import Switching
from .write_behind import LULL_S, WriteBehind

log = logging.getLogger(__name__)

TICK_S = 1.0

Emit = Callable[[str, dict[str, Any]], None]


class ControlLoop:
    """Holds the state of all kernels and GPUs of this server and drives it by plans."""

    def __init__(
        self,
        *,
        backend: DeviceBackend,
        store: TraceStore,
        forecasting: Forecasting,
        operations: Operations,
        emit: Emit,
        settings: PolicySettings,
        forecast_interval_s: float = 10.0,
        clock: Callable[[], float] = time.time,
        host: str | None = None,
    ) -> None:
        self.backend = backend
        self.store = store
        self.operations = operations
        self.settings = settings
        self.clock = clock
        self.leases = LeaseBook(store, clock)
        self.kernels: dict[str, KernelRecord] = {}
        self.claims: dict[str, Claim] = {}
        self.statuses: tuple[GpuStatus, ...] = ()
        self.risks: dict[str, Risk] = {}
        self.cordoned: dict[str, str] = {}
        self.draining: set[str] = set()
        self.speeds = Speeds(store, self.later, host)
        self.last_view: ClusterView | None = None
        self.last_plan: Plan | None = None
        self.moves: Moves | None = None
        self.saves: Saves | None = None
        self.notebooks: Notebooks | None = None
        self.checkpoints: Checkpoints | None = None
        self.caps = Caps(self)
        self.switching = Switching(self)
        self.halted = Halted(self)
        self._emit = emit
        self._listeners: list[Callable[[str], None]] = []
        self._wake = asyncio.Event()
        self._begun = asyncio.Event()
        self._forecasts = ForecastRounds(self, forecasting, forecast_interval_s)
        self._writes = WriteBehind(store)
        self._waking: asyncio.TimerHandle | None = None
        self._settled: dict[str, asyncio.Future[None]] = {}
        self.facts = Facts(self)
        self.reconciler = Reconciler(self)
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------------ life

    async def start(self) -> None:
        """Read the devices once and begin to loop."""
        await self.speeds.load()
        await self.facts.read_devices()
        self._begun.set()
        self._tasks = [
            asyncio.ensure_future(self._run()),
            asyncio.ensure_future(self._writes.run()),
        ]

    async def begun(self) -> None:
        """Wait until the GPUs are known: a server answers a moment before it has read them."""
        await self._begun.wait()

    async def close(self) -> None:
        """Stop looping; what was to be written is written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._forecasts.close()
        await self.reconciler.close()
        await self.caps.close()
        if self._waking is not None:
            self._waking.cancel()
        await asyncio.to_thread(self._writes.write_all)

    def wake(self) -> None:
        """Decide again soon."""
        self._wake.set()

    def wake_soon(self) -> None:
        """Decide again once more notices may have come: a run-all sends hundreds in a second."""
        if self.claims:
            self.wake()
        elif self._waking is None:
            self._waking = asyncio.get_running_loop().call_later(LULL_S, self._woken)

    def _woken(self) -> None:
        self._waking = None
        self.wake()

    def event(self, kind: str, /, **data: Any) -> None:
        """Log an event and tell subscribers."""
        now = self.clock()
        self.later(lambda: self.store.add_event(now, kind, data))
        self.tell(kind, **data)
        for listener in self._listeners:
            listener(kind)

    def tell(self, kind: str, /, **data: Any) -> None:
        """Tell subscribers something that is not worth keeping."""
        self._emit(kind, {"t_s": self.clock(), **data})

    def on_event(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the kind of every event."""
        self._listeners.append(listener)

    def later(self, write: Callable[[], None]) -> None:
        """Write to the store soon, in order, off the event loop."""
        self._writes.add(write)

    async def _run(self) -> None:
        while True:
            # Before Python 3.12 `wait_for` loses a cancellation that comes together with the wake,
            # and then the loop, and the server with it, would never stop.
            turn = asyncio.get_running_loop().call_later(TICK_S, self.wake)
            try:
                await self._wake.wait()
            finally:
                turn.cancel()
            self._wake.clear()
            try:
                await self.tick()
            except Exception:
                # One bad turn must not end the loop: every kernel's claims hang on it.
                log.exception("A turn of the control loop failed; the next one follows in 1 s")
                await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """Observe, decide and act once."""
        await self.facts.gather()
        self.halted.claim()
        view = build_view(self)
        plan = decide(view)
        self.last_view, self.last_plan = view, plan
        await self.reconciler.carry_out(plan)
        self.caps.refresh()
        self._forecasts.refresh()

    # ------------------------------------------------------------------ kernels

    def kernel(self, kernel_id: str) -> KernelRecord:
        """Return a kernel's record.

        Raises
        ------
        NotFoundError
            If there is no such kernel.
        """
        if kernel_id not in self.kernels:
            raise NotFoundError(f"kernel {kernel_id!r} does not exist on this server")
        return self.kernels[kernel_id]

    def kernel_started(self, record: KernelRecord) -> None:
        """Take a kernel in."""
        self.kernels[record.kernel_id] = record
        self.halted.taken_over(record)
        lease = self.leases.get(record.kernel_id)
        self.event(
            "kernel_started",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            gpu_uuid=lease.gpu_uuid if lease else None,
            bytes=lease.bytes if lease else 0,
            agent=record.port.has_agent,
        )
        self.wake()

    async def kernel_ended(self, kernel_id: str, reason: str) -> None:
        """Let go of a kernel and of everything it held."""
        record = self.kernels.pop(kernel_id, None)
        for claim in [c for c in self.claims.values() if c.kernel_id == kernel_id]:
            del self.claims[claim.claim_id]
            self.settle(claim.claim_id, ConflictError(f"kernel {kernel_id} ended: {reason}"))
        self._forecasts.forget(kernel_id)
        self.caps.forget(kernel_id)
        if self.checkpoints is not None:
            self.checkpoints.forget(kernel_id)
        lease = await self.leases.release(kernel_id)
        if record is not None or lease is not None:
            self.event(
                "kernel_ended",
                kernel_id=kernel_id,
                notebook=record.notebook if record else None,
                gpu_uuid=lease.gpu_uuid if lease else None,
                reason=reason,
            )
        self.wake()

    def cell_started(self, record: KernelRecord, digest: str | None) -> None:
        """Note that a cell runs."""
        record.running_since_s, record.running_digest = self.clock(), digest
        record.granted_s = None
        record.burst.cell_started(record.running_since_s)
        if record.prebound == "restored":
            self._prebind_hit(record)

    def cell_over(self, record: KernelRecord) -> None:
        """Note that a cell has ended of which nothing else is known: its kernel has no agent."""
        now = self.clock()
        record.burst.cell_ended(record.running_since_s or now, now)
        record.running_since_s = record.running_digest = record.granted_s = None
        record.claim_priority = None
        record.last_used_s = now
        self.wake_soon()

    def prebound(
        self,
        record: KernelRecord,
        gpu_uuid: str,
        wanted_bytes: int,
        restored_bytes: int,
        reason: str,
    ) -> None:
        """Note that memory was set aside or state brought back before the kernel asked."""
        if not record.busy:
            record.prebound = "restored" if restored_bytes else "reserved"
        record.decided(self.clock(), "prebind", reason)
        self.event(
            "prebound",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            gpu_uuid=gpu_uuid,
            bytes=wanted_bytes,
            restored_bytes=restored_bytes,
            reason=reason,
        )
        self.wake()

    def _prebind_hit(self, record: KernelRecord) -> None:
        record.prebound = None
        self.event("prebind_hit", kernel_id=record.kernel_id, notebook=record.notebook)

    def cell_ran(self, record: KernelRecord, run: CellRun) -> None:
        """Note a finished cell run."""
        record.running_since_s = record.running_digest = record.granted_s = None
        record.claim_priority = None
        record.last_used_s = record.changed_s = self.clock()
        record.burst.cell_ended(run.start_s, run.end_s)
        if run.end_s >= record.measured_s and not record.checkpointed:
            # A short run is told late: it must not undo what a reclaim has found since.
            record.used_bytes = run.end_bytes
        record.runs.append(run)
        record.lasted(run)
        if record.prebound == "restored" or (run.peak_bytes and record.prebound == "reserved"):
            self._prebind_hit(record)
        if run.peak_bytes:
            record.peaks[run.digest] = run.peak_bytes
        self.later(lambda: self.store.add_cell_run(run))
        self.event(
            "cell_run",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            seconds=run.end_s - run.start_s,
            peak_bytes=run.peak_bytes,
            outcome=run.outcome.value,
        )
        self.wake_soon()

    def claim(self, claim: Claim) -> None:
        """Take a claim in; a repeated one changes nothing."""
        if claim.claim_id in self.claims:
            return
        self.claims[claim.claim_id] = claim
        record = self.kernels.get(claim.kernel_id)
        if record is not None and claim.origin == "cell":
            record.claimed_s.append(claim.made_s)
        self.event(
            "claim",
            kernel_id=claim.kernel_id,
            claim_id=claim.claim_id,
            bytes=claim.bytes,
            origin=claim.origin,
        )
        self.wake()

    def claim_ended(self, claim_id: str, reason: str) -> None:
        """Forget a claim that its kernel gave up."""
        claim = self.claims.pop(claim_id, None)
        if claim is not None:
            self.settle(claim_id, ConflictError(f"claim {claim_id} ended: {reason}"))
            self.event("claim_ended", kernel_id=claim.kernel_id, claim_id=claim_id, reason=reason)
            self.wake()

    def settled(self, claim: Claim) -> asyncio.Future[None]:
        """Return a future that is done when the claim is granted and fails when it is refused."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settled[claim.claim_id] = future
        return future

    def settle(self, claim_id: str, refusal: GpuPredictError | None = None) -> None:
        """Tell whoever waits for a claim how it ended."""
        future = self._settled.pop(claim_id, None)
        if future is None or future.done():
            return
        if refusal is None:
            future.set_result(None)
        else:
            future.set_exception(refusal)

    async def reclaim(self, kernel_id: str, reason: str, *, wait: bool = False) -> int:
        """Suspend a kernel as a plan would, see `Switching.reclaim`."""
        return await self.switching.reclaim(kernel_id, reason, wait=wait)

    # ------------------------------------------------------------------ GPUs

    def gpu(self, uuid: str) -> GpuStatus:
        """Return a GPU's status.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        """
        for status in self.statuses:
            if status.uuid == uuid:
                return status
        known = ", ".join(s.uuid for s in self.statuses) or "none"
        raise NotFoundError(f"GPU {uuid!r} does not exist; known GPUs: {known}")

    def gpu_name(self, uuid: str) -> str:
        """Return what kind of GPU it is; one that is gone is of no other's kind."""
        return next((s.name for s in self.statuses if s.uuid == uuid), f"the lost GPU {uuid}")

    def cordon(self, uuid: str, reason: str) -> None:
        """Give no new leases on a GPU."""
        self.gpu(uuid)
        if uuid not in self.cordoned:
            self.cordoned[uuid] = reason
            self.event("cordoned", gpu_uuid=uuid, reason=reason)
            self.wake()

    def uncordon(self, uuid: str) -> None:
        """Give leases on a GPU again; a health verdict is forgotten and made anew."""
        self.gpu(uuid)
        self.draining.discard(uuid)
        if self.cordoned.pop(uuid, None) is not None:
            self.risks.pop(uuid, None)
            self.event("uncordoned", gpu_uuid=uuid)
        self.wake()

    def drain(self, uuid: str, reason: str) -> None:
        """Cordon a GPU and move its kernels off it."""
        self.cordon(uuid, reason)
        self.draining.add(uuid)
        self.wake()

    def free_bytes(self, gpu_uuid: str, *, but_for: str | None = None) -> int:
        """Return what nobody holds of a GPU, kernel `but_for` apart, or is on its way to."""
        return free_bytes(self, gpu_uuid, but_for)

    def configure(self, changes: Mapping[str, Any]) -> PolicySettings:
        """Change the live policy's settings."""
        self.settings = replace(self.settings, **changes)
        self.event("policy", **dict(changes))
        self.wake()
        return self.settings
