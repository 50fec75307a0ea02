"""What users can see and do, for REST, for `%gpu` and for the demo alike; all of it plain data."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..control.loop import ControlLoop
from ..control.operations import Operation, Progress
from ..control.records import KernelRecord
from ..control.rungs import why_no_checkpoint
from ..control.switching import PlanOvertaken
from ..core.allocation.capacity import check_satisfiable
from ..core.model import Claim, Lease, LeaseState
from ..core.retention import LAST
from ..errors import BadInputError, ConflictError, RefusedError
from ..snapshots.stores import validate_name
from . import inputs
from .fleet import Fleet
from .power import power_model
from .relaunch import Relauncher
from .snapshots import Snapshots


class Api:
    """One method per noun and verb of the REST table."""

    def __init__(
        self,
        loop: ControlLoop,
        fleet: Fleet,
        moves: Relauncher,
        saves: Snapshots,
        backend: str,
    ) -> None:
        self.loop = loop
        self.fleet = fleet
        self.moves = moves
        self.saves = saves
        self.backend_sentence = backend

    # ------------------------------------------------------------------ GPUs

    def gpus(self) -> dict[str, Any]:
        """Return every GPU."""
        return {
            "simulated": self.loop.backend.simulated,
            "backend": self.backend_sentence,
            "gpus": [self.gpu(s.uuid) for s in self.loop.statuses],
        }

    def gpu(self, gpu_uuid: str) -> dict[str, Any]:
        """Return one GPU with its leases, risk and evidence."""
        loop, status = self.loop, self.loop.gpu(gpu_uuid)
        risk = loop.risks.get(gpu_uuid)
        leases = loop.leases.on(gpu_uuid)
        return {
            **asdict(status),
            "held_bytes": sum(x.held_bytes for x in leases),
            "cordoned": gpu_uuid in loop.cordoned,
            "cordon_reason": loop.cordoned.get(gpu_uuid),
            "draining": gpu_uuid in loop.draining,
            "risk": None
            if risk is None
            else {"level": risk.level.value, "evidence": list(risk.evidence)},
            "leases": [lease_model(x) for x in leases],
        }

    def power(self) -> dict[str, Any]:
        """Return the energy that the GPUs have used and saved."""
        return power_model(self.loop)

    def cordon(self, gpu_uuid: str) -> dict[str, Any]:
        """Give no new leases on a GPU."""
        self.loop.cordon(gpu_uuid, "asked for by a user")
        return self.gpu(gpu_uuid)

    def uncordon(self, gpu_uuid: str) -> dict[str, Any]:
        """Give leases on it again."""
        self.loop.uncordon(gpu_uuid)
        return self.gpu(gpu_uuid)

    def drain(self, gpu_uuid: str) -> dict[str, Any]:
        """Move its kernels off it."""
        self.loop.drain(gpu_uuid, "drain asked for by a user")
        return self.gpu(gpu_uuid)

    def script_health(self, gpu_uuid: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change a simulated GPU's health."""
        self.loop.gpu(gpu_uuid)
        self.loop.backend.script_health(gpu_uuid, **inputs.health(body))
        self.loop.wake()
        return self.gpu(gpu_uuid)

    # ------------------------------------------------------------------ kernels

    def kernels(self) -> list[dict[str, Any]]:
        """Return every kernel."""
        return [self.kernel(kernel_id) for kernel_id in self.loop.kernels]

    def kernel(self, kernel_id: str) -> dict[str, Any]:
        """Return one kernel: lease, demand, last decision and its reason."""
        loop = self.loop
        record = loop.kernel(kernel_id)
        lease = loop.leases.get(kernel_id)
        decision = record.decisions[-1] if record.decisions else None
        operation = loop.operations.running_on(kernel_id)
        return {
            "id": kernel_id,
            "name": record.kernel_name,
            "notebook": record.notebook,
            "simulated": loop.backend.simulated,
            "agent": record.port.has_agent,
            "pid": record.port.pid,
            "state": "none" if lease is None else lease.state.value,
            "lease": None if lease is None else lease_model(lease),
            "used_bytes": record.used_bytes,
            "suspended_bytes": record.suspended_bytes,
            "busy": record.busy,
            "waiting": [claim_model(c) for c in loop.claims.values() if c.kernel_id == kernel_id],
            "checkpointed": record.checkpointed,
            "preempted_s": record.preempted_s,
            "queued_runs": record.queued_runs,
            "pinned": record.pinned,
            "priority": record.priority,
            "keep_reason": record.keeps(loop.clock()),
            "last_decision": None if decision is None else asdict(decision),
            "forecast": None if record.forecast is None else asdict(record.forecast),
            "operation": None if operation is None else operation.id,
            "restorable_snapshot": self.fleet.offers.of(kernel_id),
        }

    def forecast(self, kernel_id: str) -> dict[str, Any]:
        """Return the kernel's forecast with its model and backtest; empty before the first one."""
        record = self.loop.kernel(kernel_id)
        if record.forecast is None:
            return {"kernel_id": kernel_id, "model": None, "horizons": [], "candidates": []}
        return asdict(record.forecast)

    def trace(self, kernel_id: str) -> list[dict[str, Any]]:
        """Return the kernel's cell runs, oldest first."""
        record = self.loop.kernel(kernel_id)
        return [{**asdict(r), "outcome": r.outcome.value} for r in record.runs]

    def why(self, kernel_id: str) -> list[dict[str, Any]]:
        """Return the decisions about a kernel, oldest first."""
        return [asdict(d) for d in self.loop.kernel(kernel_id).decisions]

    async def history(self, kernel_id: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return the event log of a kernel, oldest first."""
        self.loop.kernel(kernel_id)
        return await asyncio.to_thread(self.loop.store.events, kernel_id=kernel_id, limit=limit)

    def pin(self, kernel_id: str, *, pinned: bool) -> dict[str, Any]:
        """Never suspend the kernel while pinned."""
        self.loop.kernel(kernel_id).pinned = pinned
        self.loop.event("pinned" if pinned else "unpinned", kernel_id=kernel_id)
        self.loop.wake()
        return self.kernel(kernel_id)

    def claim(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Ask for memory; the operation is done when it is granted."""
        inputs.known_fields(body, {"bytes", "priority", "affinity", "critical", "deadline_s"})
        if "bytes" not in body:
            raise BadInputError("bytes is missing: say how much memory the claim is for")
        wanted = inputs.size_bytes(body["bytes"])
        priority = inputs.priority(body["priority"]) if "priority" in body else None
        affinity = body.get("affinity")
        if affinity is not None:
            inputs.text(affinity, "affinity")
        critical = inputs.boolean(body.get("critical", False), "critical")
        deadline_s = inputs.seconds(
            body.get("deadline_s", self.fleet.claim_deadline_s), "deadline_s"
        )
        return self._claim(
            self._with_agent(kernel_id),
            wanted,
            kind="claim",
            priority=priority,
            affinity=affinity,
            critical=critical,
            deadline_s=deadline_s,
        )

    def bind(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Bring a kernel's state back now, as its next cell would."""
        inputs.known_fields(body, set())
        record = self.loop.kernel(kernel_id)
        if not record.checkpointed:
            record = self._with_agent(kernel_id)
        wanted = max(1, record.suspended_bytes + record.used_bytes)
        return self._claim(record, wanted, kind="bind")

    def _claim(
        self,
        record: KernelRecord,
        wanted: int,
        *,
        kind: str,
        priority: int | None = None,
        affinity: str | None = None,
        critical: bool = False,
        deadline_s: float | None = None,
    ) -> Operation:
        loop = self.loop
        now = loop.clock()
        claim = Claim(
            claim_id=uuid.uuid4().hex,
            kernel_id=record.kernel_id,
            bytes=wanted,
            made_s=now,
            deadline_s=now + (self.fleet.claim_deadline_s if deadline_s is None else deadline_s),
            priority=record.priority if priority is None else priority,
            affinity=affinity,
            critical=critical,
            origin="rest",
        )
        check_satisfiable(claim, loop.last_view.gpus if loop.last_view else ())

        async def granted(_: Any) -> dict[str, Any]:
            settled = loop.settled(claim)
            record.priority = claim.priority
            loop.claim(claim)
            await settled
            return self.kernel(record.kernel_id)

        return loop.operations.start(kind, record.kernel_id, granted)

    def reclaim(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Suspend a kernel now."""
        inputs.known_fields(body, {"wait"})
        wait = inputs.boolean(body.get("wait", False), "wait")
        record = self._ready(kernel_id)
        lease = self.loop.leases.get(kernel_id)
        if lease is None or lease.state is LeaseState.SUSPENDED:
            raise ConflictError(f"kernel {kernel_id} holds no GPU memory that could be taken back")
        if not record.port.has_agent and why_no_checkpoint(self.loop, record, mid_cell=False):
            self._with_agent(kernel_id)

        async def work(_: Any) -> dict[str, Any]:
            try:
                freed = await self.loop.reclaim(
                    record.kernel_id, "reclaim asked for by a user", wait=wait
                )
            except PlanOvertaken as error:
                raise RefusedError(str(error)) from error
            kept = [{"reason": why, "bytes": size} for why, size in record.kept]
            return {"freed_bytes": freed, "kept": kept, **self.kernel(kernel_id)}

        return self.loop.operations.start("reclaim", kernel_id, work)

    def snapshot(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Save the kernel's state."""
        inputs.known_fields(body, {"name"})
        name = (
            None if body.get("name") is None else validate_name(inputs.text(body["name"], "name"))
        )
        if name == LAST:
            raise BadInputError(f"a snapshot cannot be called {LAST!r}, which means the latest one")
        self._at_hand(kernel_id)

        async def work(progress: Progress) -> dict[str, Any]:
            return await self.saves.take_snapshot(
                kernel_id, name, "asked for by a user", cause="asked", progress=progress
            )

        return self.loop.operations.start("snapshot", kernel_id, work)

    def note_snapshot(self, kernel_id: str, report: dict[str, Any]) -> None:
        """Log a snapshot that a kernel took by itself."""
        self.saves.note(self.loop.kernel(kernel_id), report, "%gpu snapshot")

    def note_restore(self, kernel_id: str, params: Mapping[str, Any]) -> None:
        """Log a restore that a kernel did by itself."""
        self.saves.restored(self.loop.kernel(kernel_id), str(params.get("snapshot_id")))

    async def restore(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Load a snapshot, by id or by name or the `last` one, into the kernel."""
        inputs.known_fields(body, {"snapshot", "only", "recompute"})
        if "snapshot" not in body:
            raise BadInputError("snapshot is missing: give the id or name of one")
        wanted = inputs.text(body["snapshot"], "snapshot")
        only = inputs.names(body.get("only", []), "only")
        recompute = inputs.boolean(body.get("recompute", self.fleet.recompute), "recompute")
        record = self._at_hand(kernel_id)
        snapshot_id = await self.saves.find(wanted, record)

        async def work(progress: Progress) -> dict[str, Any]:
            return await self.saves.restore(
                kernel_id, snapshot_id, progress, only=only, recompute=recompute
            )

        return self.loop.operations.start("restore", kernel_id, work)

    def migrate(self, kernel_id: str, body: Mapping[str, Any]) -> Operation:
        """Move the kernel to another GPU, or to the one with the most room."""
        inputs.known_fields(body, {"gpu"})
        target = None if body.get("gpu") is None else inputs.text(body["gpu"], "gpu")
        record = self._ready(kernel_id)
        if self.loop.checkpoints is None:
            self._with_agent(kernel_id)
        if target is None:
            target = self.moves.choose_target(record)
        else:
            self.loop.gpu(target)
        chosen = target

        async def work(progress: Any) -> dict[str, Any]:
            return await self.moves.migrate(
                kernel_id, chosen, "migration asked for by a user", progress
            )

        return self.loop.operations.start("migrate", kernel_id, work)

    def _ready(self, kernel_id: str) -> KernelRecord:
        record = self.loop.kernel(kernel_id)
        if not record.ready:
            raise ConflictError(f"kernel {kernel_id} is still starting; try again in a moment")
        return record

    def _with_agent(self, kernel_id: str) -> KernelRecord:
        record = self._ready(kernel_id)
        if not record.port.has_agent:
            raise ConflictError(
                f"kernel {kernel_id} has no agent, so only its memory can be watched; "
                "see `jupyter gpu doctor`"
            )
        return record

    def _at_hand(self, kernel_id: str) -> KernelRecord:
        record = self._with_agent(kernel_id)
        if record.checkpointed:
            raise ConflictError(
                f"kernel {kernel_id} cannot read its device memory, which the driver has taken "
                "off the GPU; bind it first"
            )
        return record

    # ------------------------------------------------------------------ the rest

    def operation(self, operation_id: str) -> dict[str, Any]:
        """Return an operation."""
        return asdict(self.loop.operations.get(operation_id))

    async def cancel(self, operation_id: str) -> dict[str, Any]:
        """Ask an operation to stop; what it was at work on stays as it was."""
        return asdict(await self.loop.operations.cancel(operation_id))

    async def snapshots(self) -> list[dict[str, Any]]:
        """Return the catalogue, newest first."""
        return await self.saves.catalogue()

    async def snapshot_model(self, wanted: str) -> dict[str, Any]:
        """Return one snapshot, by id or name."""
        return await self.saves.describe(await self.saves.find(inputs.text(wanted, "snapshot")))

    async def delete_snapshot(self, wanted: str) -> None:
        """Delete one snapshot, by id or name."""
        await self.saves.delete(await self.saves.find(inputs.text(wanted, "snapshot")))

    def plan(self) -> dict[str, Any]:
        """Return the last picture and the plan made from it."""
        view, plan = self.loop.last_view, self.loop.last_plan
        return {
            "view": None
            if view is None
            else {**asdict(view), "claims": [claim_model(c) for c in view.claims]},
            "plan": None
            if plan is None
            else {
                "made_s": plan.made_s,
                "actions": [{"action": type(a).__name__, **asdict(a)} for a in plan.actions],
            },
        }

    def policy(self) -> dict[str, Any]:
        """Return the live policy's settings."""
        return asdict(self.loop.settings)

    def set_policy(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change the live policy's settings."""
        settings = self.loop.configure(inputs.policy(body))
        self.fleet.tell_settings()
        return asdict(settings)


def claim_model(claim: Claim) -> dict[str, Any]:
    """Return a claim as JSON, which has no infinity."""
    endless = math.isinf(claim.deadline_s)
    return {**asdict(claim), "deadline_s": None if endless else claim.deadline_s}


def lease_model(lease: Lease) -> dict[str, Any]:
    """Return a lease as JSON."""
    return {**asdict(lease), "state": lease.state.value, "held_bytes": lease.held_bytes}
