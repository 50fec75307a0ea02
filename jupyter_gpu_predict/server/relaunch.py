"""Snapshots of kernels, and moving a kernel to another process on another GPU (rung 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ..control.records import KernelRecord
from ..core.allocation.capacity import takes_new_leases
from ..core.model import Lease, LeaseState
from ..core.sizes import format_bytes
from ..errors import (
    ConflictError,
    GpuPredictError,
    KernelLinkError,
    UnsatisfiableError,
)
from ..kernel import messages as m
from ..snapshots.folder import SnapshotFolder
from .fleet import Fleet
from .handover import Handover
from .link import KernelAgentLink
from .standby import Standby

log = logging.getLogger(__name__)

QUIET_DEADLINE_S = 300.0
"""How long a move or snapshot waits for the running cell."""

STANDBY_EPOCH = 0
"""Epoch of a standby's agent, older than any lease, so that the first real command is newer."""

Progress = Callable[[float], None]


class Relauncher:
    """`control.ports.Moves` over the kernel link; every path to a snapshot or a move is here."""

    def __init__(self, fleet: Fleet, remember: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.loop = fleet.loop
        self.folder = SnapshotFolder(fleet.paths.snapshots)
        self._remember = remember

    # ------------------------------------------------------------------ snapshots

    async def take_snapshot(self, kernel_id: str, name: str | None, reason: str) -> dict[str, Any]:
        """Save the kernel's state between cells."""
        record, link = self._at_work(kernel_id, "snapshot")
        try:
            answer = await self._capture(record, link, name or _auto_name(record), move=False)
        finally:
            record.working = None
        record.last_snapshot_s = self.loop.clock()
        self.note_snapshot(record, answer, reason)
        return answer

    def note_snapshot(self, record: KernelRecord, answer: dict[str, Any], reason: str) -> None:
        """Log a snapshot that was taken."""
        self.loop.event(
            "snapshot",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            snapshot_id=answer.get("snapshot_id"),
            name=answer.get("name"),
            bytes=answer.get("bytes_written", 0),
            seconds=answer.get("seconds", 0.0),
            reason=reason,
        )

    async def restore_snapshot(self, kernel_id: str, snapshot_id: str) -> dict[str, Any]:
        """Load a snapshot into the kernel."""
        record, link = self._at_work(kernel_id, "restore")
        try:
            paths = self.fleet.paths
            answer = await link.request(
                m.RestoreRequest(
                    snapshot_id=snapshot_id,
                    folder=str(paths.snapshots),
                    key_path=str(paths.key),
                    deadline_s=QUIET_DEADLINE_S,
                ),
                QUIET_DEADLINE_S + 120.0,
            )
        finally:
            record.working = None
            self.loop.wake()
        self.loop.event(
            "snapshot_restored",
            kernel_id=kernel_id,
            notebook=record.notebook,
            snapshot_id=snapshot_id,
        )
        return answer

    def catalogue(self) -> list[dict[str, Any]]:
        """Return every snapshot, newest first."""
        return [
            {
                "id": s.snapshot_id,
                "name": s.name,
                "created_s": s.created_s,
                "kernel_id": s.kernel_id,
                "notebook": s.notebook,
                "bytes": s.nbytes,
                "variables": s.variables,
            }
            for s in reversed(self.folder.list())
        ]

    def describe_snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """Return one snapshot with its variables."""
        manifest = self.folder.read(snapshot_id)["manifest"]
        summary = next(m for m in self.catalogue() if m["id"] == snapshot_id)
        return {**summary, "python": manifest["python"], "variables": manifest["variables"]}

    async def _capture(
        self, record: KernelRecord, link: KernelAgentLink, name: str, *, move: bool
    ) -> dict[str, Any]:
        paths = self.fleet.paths
        return await link.request(
            m.SnapshotRequest(
                name=name,
                folder=str(paths.snapshots),
                key_path=str(paths.key),
                move=move,
                hold=move,
                notebook=record.notebook,
                deadline_s=QUIET_DEADLINE_S,
            ),
            QUIET_DEADLINE_S + 300.0,
        )

    # ------------------------------------------------------------------ moves

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
                (self._free_bytes(g.uuid), g.uuid)
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

    def _free_bytes(self, gpu_uuid: str) -> int:
        leases = self.loop.leases.on(gpu_uuid)
        arriving = sum(
            r.target_bytes for r in self.loop.kernels.values() if r.target_gpu_uuid == gpu_uuid
        )
        total = self.loop.gpu(gpu_uuid).total_bytes
        return total - arriving - sum(lease.held_bytes for lease in leases)

    async def migrate(
        self, kernel_id: str, target_gpu_uuid: str, reason: str, progress: Progress | None = None
    ) -> dict[str, Any]:
        """Move the kernel to another GPU by relaunch, under the same kernel id.

        Raises
        ------
        GpuPredictError
            If the move failed; the old process simply goes on.
        """
        loop = self.loop
        tell = progress or (lambda _: None)
        lease = loop.leases.get(kernel_id)
        record = loop.kernel(kernel_id)
        self._check_target(record, lease, target_gpu_uuid)
        record, link = self._at_work(kernel_id, "migrate")
        started = time.perf_counter()
        record.target_gpu_uuid = target_gpu_uuid
        record.target_bytes = _moving_bytes(record, lease)
        source = lease.gpu_uuid if lease is not None else None
        loop.event(
            "migration_started",
            kernel_id=kernel_id,
            notebook=record.notebook,
            gpu_uuid=source,
            target_gpu_uuid=target_gpu_uuid,
            reason=reason,
        )
        try:
            if lease is not None:
                await loop.leases.begin_move(kernel_id)
            pause_s = await self._move(record, link, lease, target_gpu_uuid, tell)
        except BaseException as error:
            await loop.leases.end_move(kernel_id, None)
            loop.event(
                "migration_failed",
                kernel_id=kernel_id,
                notebook=record.notebook,
                gpu_uuid=source,
                target_gpu_uuid=target_gpu_uuid,
                reason=str(error) or type(error).__name__,
            )
            raise
        finally:
            record.working = None
            record.target_gpu_uuid, record.target_bytes = None, 0
            loop.wake()
        seconds = time.perf_counter() - started
        loop.event(
            "migrated",
            kernel_id=kernel_id,
            notebook=record.notebook,
            gpu_uuid=target_gpu_uuid,
            source_gpu_uuid=source,
            seconds=seconds,
            pause_s=pause_s,
            reason=reason,
        )
        return {
            "kernel_id": kernel_id,
            "source_gpu_uuid": source,
            "gpu_uuid": target_gpu_uuid,
            "rung": "relaunch",
            "seconds": seconds,
            "pause_s": pause_s,
        }

    def _check_target(self, record: KernelRecord, lease: Lease | None, target: str) -> None:
        loop = self.loop
        status = loop.gpu(target)
        if lease is not None and lease.gpu_uuid == target:
            raise ConflictError(f"kernel {record.kernel_id} is on GPU {target} already")
        if status.lost or target in loop.cordoned:
            raise ConflictError(
                f"GPU {target} takes no kernels: {loop.cordoned.get(target, 'it is lost')}; "
                "uncordon it or choose another"
            )
        wanted, free = _moving_bytes(record, lease), self._free_bytes(target)
        if wanted > free:
            raise ConflictError(
                f"GPU {target} has {format_bytes(max(0, free))} free and kernel "
                f"{record.kernel_id} needs {format_bytes(wanted)}; reclaim an idle kernel there"
            )

    async def _move(
        self,
        record: KernelRecord,
        link: KernelAgentLink,
        lease: Lease | None,
        target: str,
        tell: Progress,
    ) -> float:
        """Carry the move out and return how long the kernel did not answer, in seconds."""
        fleet, kernel_id = self.fleet, record.kernel_id
        km = fleet.managers[kernel_id]
        standby = Standby(fleet, km)
        captured: dict[str, Any] | None = None
        held = False
        try:
            description = await link.describe()
            config = {**fleet.agent_config(kernel_id, None, record), "gpu_uuid": target}
            new_link = await standby.start(target, config)
            await standby.warm(list(description["modules"]))
            tell(0.4)
            captured = await self._capture(record, link, f"move-{kernel_id[:8]}", move=True)
            paused = time.perf_counter()
            fleet.hold(kernel_id)
            held = True
            tell(0.6)
            await self._verify(new_link, captured)
            tell(0.8)
            suspended = lease is not None and lease.state is LeaseState.SUSPENDED
            if suspended:
                await new_link.reclaim(STANDBY_EPOCH, wait=True)
            await Handover(km, standby, fleet.connections(kernel_id)).commit()
        except BaseException:
            await standby.stop()
            if captured is not None:
                # It was held when it was captured; now it goes on where it was.
                await _quietly(link.request(m.ReleaseHoldRequest(), 10.0))
            if held:
                fleet.release(kernel_id, repeat_unanswered=False)
            raise
        finally:
            if captured is not None:
                await asyncio.to_thread(self.folder.delete, captured["snapshot_id"])
        await self._settle(record, new_link, lease, target)
        fleet.release(kernel_id, repeat_unanswered=True)
        return time.perf_counter() - paused

    async def _verify(self, new_link: KernelAgentLink, captured: dict[str, Any]) -> None:
        paths = self.fleet.paths
        restored = await new_link.request(
            m.RestoreRequest(
                snapshot_id=captured["snapshot_id"],
                folder=str(paths.snapshots),
                key_path=str(paths.key),
                move=True,
                deadline_s=60.0,
            ),
            300.0,
        )
        wrong = [v for v in restored["variables"] if v["status"] != "restored"]
        if wrong:
            named = "; ".join(f"{v['name']}: {v['reason'] or v['status']}" for v in wrong)
            raise KernelLinkError(f"the standby process did not get everything right: {named}")

    async def _settle(
        self,
        record: KernelRecord,
        new_link: KernelAgentLink,
        lease: Lease | None,
        target: str,
    ) -> None:
        """Book the move: the new process is the kernel now."""
        fleet, loop, kernel_id = self.fleet, self.loop, record.kernel_id
        km = fleet.managers[kernel_id]
        old_link = fleet.links[kernel_id]
        fleet.adopt_link(kernel_id, new_link, km.provisioner)
        fleet.disown(old_link)
        for claim in [c for c in loop.claims.values() if c.kernel_id == kernel_id]:
            if claim.origin == "cell":
                loop.claim_ended(claim.claim_id, "its cell starts anew after the move")
        if lease is not None:
            moved = await loop.leases.end_move(kernel_id, target)
            if moved is not None and moved.state is not LeaseState.SUSPENDED:
                await _quietly(
                    new_link.bind(
                        moved,
                        cap_bytes=loop.cap_bytes(target, kernel_id),
                        claim_id=None,
                        restore=False,
                        peaks=record.peaks,
                    )
                )
        await new_link.describe()
        await asyncio.to_thread(self._remember, kernel_id)

    def _at_work(self, kernel_id: str, kind: str) -> tuple[KernelRecord, KernelAgentLink]:
        record = self.loop.kernel(kernel_id)
        link = self.fleet.links.get(kernel_id)
        if link is None or not link.has_agent:
            raise ConflictError(f"kernel {kernel_id} has no agent; see `jupyter gpu doctor`")
        if record.working is not None:
            raise ConflictError(
                f"kernel {kernel_id}: a {record.working} is under way; try the {kind} again after"
            )
        record.working = kind
        return record, link


def _moving_bytes(record: KernelRecord, lease: Lease | None) -> int:
    """Return what the kernel will hold on its new GPU."""
    if lease is None:
        return 0
    if lease.state is LeaseState.SUSPENDED:
        return lease.resident_bytes
    return max(lease.bytes, record.used_bytes)


def _auto_name(record: KernelRecord) -> str:
    stem = (record.notebook or record.kernel_id[:8]).rsplit("/", 1)[-1].removesuffix(".ipynb")
    return f"auto-{stem}"[:100]


async def _quietly(work: Any) -> None:
    """Carry on where a kernel that should answer is gone: the loop will bury it."""
    try:
        await work
    except GpuPredictError as error:
        log.warning("After a move: %s", error)
