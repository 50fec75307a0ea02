"""One kernel's move to another process on another GPU, step by step (rung 3)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from ..control.records import KernelRecord
from ..core.migration.machine import (
    Migration,
    MigrationEvent,
    MigrationState,
    Undo,
    advance,
    undo_steps,
)
from ..core.model import LeaseState
from ..errors import ConflictError, GpuPredictError, KernelLinkError
from ..kernel import messages as m
from .fleet import Fleet
from .handover import Handover
from .link import KernelAgentLink
from .snapshots import QUIET_DEADLINE_S
from .standby import Standby

log = logging.getLogger(__name__)

OLD_GONE_S = 2.0
"""How long a move waits to see the killed process gone; it is killed in any case."""

STANDBY_EPOCH = 0
"""Epoch of a standby's agent, older than any lease, so that the first real command is newer."""

Progress = Callable[[float], None]


class Move:
    """Carries a migration out; until the ports are switched the old kernel can simply go on."""

    def __init__(
        self,
        fleet: Fleet,
        record: KernelRecord,
        link: KernelAgentLink,
        migration: Migration,
        remember: Callable[[str], None],
    ) -> None:
        self._remember = remember
        self.fleet = fleet
        self.loop = fleet.loop
        self.record = record
        self.link = link
        self.migration = migration
        self.kernel_id = record.kernel_id
        self.manager = fleet.managers[record.kernel_id]
        self.standby = Standby(fleet, self.manager)
        self.notes: list[str] = []
        """What of the state is not quite as it was, e.g. a library's memory now held twice."""
        self._captured: dict[str, Any] | None = None
        self._holding = False
        self._undo: dict[Undo, Callable[[], Any]] = {
            Undo.RESUME_SOURCE: self._resume_source,
            Undo.RELEASE_HELD_MESSAGES: self._release_held_messages,
            Undo.DISCARD_CAPTURE: self._discard_capture,
            Undo.STOP_STANDBY: self.standby.stop,
            Undo.FREE_TARGET: self._free_target,
            Undo.RESTORE_LEASE: self._restore_lease,
        }

    async def run(self, tell: Progress) -> float:
        """Move, and return for how long the kernel did not answer, in seconds.

        Raises
        ------
        GpuPredictError
            If a step failed; everything is as it was.
        """
        try:
            await self.loop.leases.begin_move(self.kernel_id)
            standby = await self._start_standby()
            self._advance(MigrationEvent.STANDBY_READY)
            tell(0.4)
            captured = await self._capture()
            paused = time.perf_counter()
            self._advance(MigrationEvent.STATE_CAPTURED)
            tell(0.6)
            await self._verify(standby, captured)
            self._advance(MigrationEvent.STATE_VERIFIED)
            tell(0.8)
            handover = Handover(
                self.manager,
                self.standby,
                standby,
                self.fleet.connections(self.kernel_id),
                self._still_wanted,
            )
            await handover.commit()
            self._advance(MigrationEvent.PORTS_SWITCHED)
        except BaseException as error:
            await self._abort(str(error) or type(error).__name__)
            raise
        await asyncio.to_thread(self._remember, self.kernel_id)
        await self._settle(standby)
        if handover.reaping is not None:
            await asyncio.wait([handover.reaping], timeout=OLD_GONE_S)
        self._advance(MigrationEvent.OLD_GONE)
        self._holding = False
        self.fleet.release(self.kernel_id, repeat_unanswered=True)
        pause_s = time.perf_counter() - paused
        await self._discard_capture()
        return pause_s

    def _still_wanted(self) -> None:
        """Give way to whoever restarted or shut the kernel down meanwhile."""
        if self.fleet.links.get(self.kernel_id) is not self.link:
            raise ConflictError(
                f"kernel {self.kernel_id} was restarted or ended while it moved; the move is undone"
            )

    def _advance(self, event: MigrationEvent, reason: str | None = None) -> None:
        self.migration = advance(self.migration, event, now_s=self.loop.clock(), reason=reason)

    # ------------------------------------------------------------------ steps

    async def _start_standby(self) -> KernelAgentLink:
        target = self.migration.target_gpu_uuid
        modules = list((await self.link.describe(modules=True))["modules"])
        config = {**self.fleet.agent_config(self.kernel_id, None, self.record), "gpu_uuid": target}
        standby = await self.standby.start(target, config)
        await self.standby.warm(modules)
        return standby

    async def _capture(self) -> dict[str, Any]:
        """Save the state; the kernel handles no message after it, so nothing can be missed."""
        self._captured = await self.link.request(
            m.SnapshotRequest(
                name=f"move-{self.kernel_id[:8]}",
                folder=self.fleet.store.url,
                key_path=str(self.fleet.paths.key),
                move=True,
                hold=True,
                cause="move",
                notebook=self.record.notebook,
                deadline_s=QUIET_DEADLINE_S,
            ),
            QUIET_DEADLINE_S + 300.0,
        )
        self.notes = list(self._captured["notes"])
        self.fleet.hold(self.kernel_id)
        self._holding = True
        return self._captured

    async def _verify(self, standby: KernelAgentLink, captured: dict[str, Any]) -> None:
        """Restore in the standby and compare each variable's digest with the one captured."""
        restored = await standby.request(
            m.RestoreRequest(
                snapshot_id=captured["snapshot_id"],
                folder=self.fleet.store.url,
                key_path=str(self.fleet.paths.key),
                move=True,
                deadline_s=60.0,
            ),
            300.0,
        )
        wrong = [v for v in restored["variables"] if v["status"] != "restored"]
        if wrong:
            named = "; ".join(f"{v['name']}: {v['reason'] or v['status']}" for v in wrong)
            raise KernelLinkError(f"the standby process did not get everything right: {named}")
        if self.migration.former.state is LeaseState.SUSPENDED:
            await standby.reclaim(STANDBY_EPOCH, wait=True)

    async def _settle(self, standby: KernelAgentLink) -> None:
        """Book the move: the new process is the kernel now."""
        loop, target = self.loop, self.migration.target_gpu_uuid
        self.fleet.adopt_link(self.kernel_id, standby, self.manager.provisioner)
        self.fleet.disown(self.link)
        self.standby.link = None
        loop.caps.forget(self.kernel_id)
        for claim in [c for c in loop.claims.values() if c.kernel_id == self.kernel_id]:
            if claim.origin == "cell":
                loop.claim_ended(claim.claim_id, "its cell starts anew after the move")
        moved = await loop.leases.end_move(self.kernel_id, target, self.record.target_bytes)
        if moved is not None and moved.state is not LeaseState.SUSPENDED:
            # Its cap comes with the next turn of the loop: no neighbour has made room for it yet.
            await _quietly(
                standby.bind(
                    moved,
                    cap_bytes=None,
                    claim_id=None,
                    restore=False,
                    peaks=self.record.peaks,
                )
            )
        await _quietly(standby.describe())

    # ------------------------------------------------------------------ undoing

    async def _abort(self, reason: str) -> None:
        if self.migration.state is MigrationState.SWITCHED:
            return
        for step in undo_steps(self.migration.state):
            undone = self._undo[step]()
            if asyncio.iscoroutine(undone):
                await undone
        self._advance(MigrationEvent.ABORT, reason)

    async def _resume_source(self) -> None:
        await _quietly(self.link.request(m.ReleaseHoldRequest(), 10.0))

    def _release_held_messages(self) -> None:
        if self._holding:
            self._holding = False
            self.fleet.release(self.kernel_id, repeat_unanswered=False)

    async def _discard_capture(self) -> None:
        if self._captured is not None:
            snapshot_id, self._captured = self._captured["snapshot_id"], None
            await asyncio.to_thread(self.fleet.store.delete, snapshot_id)

    def _free_target(self) -> None:
        self.record.target_gpu_uuid, self.record.target_bytes = None, 0

    async def _restore_lease(self) -> None:
        await self.loop.leases.end_move(self.kernel_id, None)


async def _quietly(work: Any) -> None:
    """Carry on where a kernel that should answer is gone: the loop will bury it."""
    try:
        await work
    except GpuPredictError as error:
        log.warning("During a move: %s", error)
