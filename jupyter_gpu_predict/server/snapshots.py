"""Snapshots of this server's kernels: taken, restored, listed, verified, given up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import threading
import uuid
from collections.abc import Coroutine
from typing import Any

from ..control.operations import Progress
from ..control.records import KernelRecord
from ..core.autosave import automatic_name
from ..core.retention import LAST, Saved, latest, owner_of, surplus
from ..errors import ConflictError, GpuPredictError, NotFoundError, SnapshotDamagedError
from ..kernel import messages as m
from ..snapshots.inspect.verify import VerifyReport, read_report, verify_in_background
from ..snapshots.signing import load_or_create_key
from ..snapshots.stores import SnapshotInfo
from .fleet import Fleet
from .link import KernelAgentLink
from .works import Works, free_kernel

log = logging.getLogger(__name__)

QUIET_DEADLINE_S = 300.0
"""How long a snapshot, restore or move waits for the running cell."""

CATCH_S = 600.0
"""How long it may take to catch a state after that."""

LOAD_S = 6 * 3600.0
"""How long a restore may load; it ends with its kernel, or when it is cancelled."""

VERIFY_POLL_S = 0.5

FIRST_COLLECTION_S = 60.0
"""How long after its start a server first removes what saves that were killed have left."""

COLLECT_EVERY_S = 6 * 3600.0

REASONS = {"long cell": "before a cell that is expected to run for long"}
"""What kernels do by themselves, in words."""


class Snapshots:
    """`control.ports.Saves` over the kernel link; every path to a snapshot is here."""

    def __init__(self, fleet: Fleet, *, verify: bool) -> None:
        self.fleet = fleet
        self.loop = fleet.loop
        self.store = fleet.store
        self.works = Works()
        self._verify = verify
        self._chunks: dict[str, dict[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._tidying = asyncio.Lock()
        self._verifying = asyncio.Lock()
        self._closing = threading.Event()

    def start(self) -> None:
        """Begin to remove, soon and then rarely, what saves that were killed have left."""
        # Not one of the event loop's threads, which the server waits for when it stops.
        threading.Thread(target=self._collect, name="snapshot garbage", daemon=True).start()

    async def close(self) -> None:
        """Give up what is done behind the back of users."""
        self._closing.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------------ saving

    async def take_snapshot(
        self, kernel_id: str, name: str | None, reason: str, *, cause: str, progress: Progress
    ) -> dict[str, Any]:
        """Save the kernel's state between cells; it goes on while its state is written.

        The kernel is not marked as at work: it may wait for a cell that waits for memory itself.
        """
        record, link = free_kernel(self.fleet, kernel_id, "snapshot")
        work_id = uuid.uuid4().hex
        self.works.open(work_id, progress)
        try:
            progress.cancellable(lambda: self.works.stop(link, work_id))
            began = await self.works.begin(
                link,
                m.SnapshotRequest(
                    name=name or automatic_name(record.notebook, kernel_id),
                    folder=self.store.url,
                    key_path=str(self.fleet.paths.key),
                    notebook=record.notebook,
                    deadline_s=QUIET_DEADLINE_S,
                    wait=cause != "idle",
                    background=True,
                    work_id=work_id,
                    cause=cause,
                ),
                QUIET_DEADLINE_S + CATCH_S,
            )
        except BaseException:
            self.works.close(work_id)
            raise
        progress.step_aside()
        record.saved(float(began["began_s"]))
        return await self._written(record, link, work_id, reason, cause)

    async def _written(
        self, record: KernelRecord, link: KernelAgentLink, work_id: str, reason: str, cause: str
    ) -> dict[str, Any]:
        """Wait until a snapshot is there."""
        try:
            answer = await self.works.end_of(link, work_id)
        except GpuPredictError:
            # What was caught is lost, so what has changed is to be saved again.
            record.changed_s = record.changed_s or self.loop.clock()
            raise
        self.note(record, answer, reason)
        if cause != "asked":
            self._spawn(self._look_after(record, link, answer["snapshot_id"]))
        return answer

    def note(self, record: KernelRecord, answer: dict[str, Any], reason: str) -> None:
        """Log a snapshot that was taken."""
        self.loop.event(
            "snapshot",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            snapshot_id=answer.get("snapshot_id"),
            name=answer.get("name"),
            bytes=answer.get("bytes_written", 0),
            seconds=answer.get("seconds", 0.0),
            pause_s=answer.get("pause_s"),
            reason=reason,
        )

    def heard(self, record: KernelRecord, notice: m.ProgressMessage) -> None:
        """Follow what a kernel says it saves or loads, also what nobody here had asked for."""
        link = self.fleet.links.get(record.kernel_id)
        known = self.works.heard(notice)
        if known or notice.kind != "snapshot" or notice.cause not in REASONS or link is None:
            return
        if notice.state not in {"running", "done"}:
            return
        record.saved(self.loop.clock())

        async def follow(progress: Progress) -> dict[str, Any]:
            self.works.open(notice.work_id, progress)
            self.works.heard(notice)
            progress.step_aside()
            progress.cancellable(lambda: self.works.stop(link, notice.work_id))
            return await self._written(
                record, link, notice.work_id, REASONS[notice.cause], notice.cause
            )

        with contextlib.suppress(ConflictError):  # a later notice tries again
            self.loop.operations.start("snapshot", record.kernel_id, follow)

    # ------------------------------------------------------------------ loading

    async def restore(
        self,
        kernel_id: str,
        snapshot_id: str,
        progress: Progress,
        *,
        only: tuple[str, ...] = (),
        recompute: bool = False,
    ) -> dict[str, Any]:
        """Load a snapshot into the kernel between cells."""
        record, link = free_kernel(self.fleet, kernel_id, "restore")
        work_id = uuid.uuid4().hex
        self.works.open(work_id, progress)
        progress.cancellable(lambda: self.works.stop(link, work_id))
        try:
            answer = await self.works.begin(
                link,
                m.RestoreRequest(
                    snapshot_id=snapshot_id,
                    folder=self.store.url,
                    key_path=str(self.fleet.paths.key),
                    deadline_s=QUIET_DEADLINE_S,
                    only=only,
                    recompute=recompute,
                    work_id=work_id,
                ),
                QUIET_DEADLINE_S + LOAD_S,
            )
        finally:
            self.works.close(work_id)
            self.loop.wake()
        # The last notice may still be on its way: it comes through another socket.
        progress.bytes(answer["bytes_read"], answer["bytes_read"])
        self.restored(record, snapshot_id)
        return answer

    def restored(self, record: KernelRecord, snapshot_id: str) -> None:
        """Log a snapshot that was restored."""
        self.fleet.offers.settled(record.kernel_id)
        record.changed_s = self.loop.clock()
        self.loop.event(
            "snapshot_restored",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            snapshot_id=snapshot_id,
        )

    # ------------------------------------------------------------------ the catalogue

    async def find(self, wanted: str, record: KernelRecord | None = None) -> str:
        """Return the id of a snapshot given by id or name; `last` is the latest of a kernel.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        if record is None or wanted != LAST:
            own = None if record is None else record.kernel_id
            return await asyncio.to_thread(self.store.find, wanted, kernel_id=own)
        offer = self.fleet.offers.of(record.kernel_id)
        before_s = math.inf if offer is None else float(offer["died_s"])
        listed = await asyncio.to_thread(self.store.list)
        sound = (s for s in listed if s.verified is not False)
        found = latest(sound, record.kernel_id, record.notebook, before_s)
        if found is None:
            raise NotFoundError(f"kernel {record.kernel_id} has no snapshot yet; take one first")
        return found.snapshot_id

    async def catalogue(self) -> list[dict[str, Any]]:
        """Return every snapshot, newest first."""
        listed = await asyncio.to_thread(self.store.list)
        return [snapshot_model(s) for s in reversed(listed)]

    async def describe(self, snapshot_id: str) -> dict[str, Any]:
        """Return one snapshot with its variables.

        Raises
        ------
        SnapshotDamagedError
            If its manifest cannot be read.
        """
        listed = await asyncio.to_thread(self.store.list)
        summary = next((s for s in listed if s.snapshot_id == snapshot_id), None)
        if summary is None:
            raise SnapshotDamagedError(
                f"snapshot {snapshot_id!r} is damaged and cannot be read; delete it"
            )
        manifest = (await asyncio.to_thread(self.store.read, snapshot_id))["manifest"]
        return {
            **snapshot_model(summary),
            "python": manifest["python"],
            "variables": manifest["variables"],
        }

    async def delete(self, snapshot_id: str, reason: str | None = None) -> None:
        """Delete one snapshot and what only it had stored."""
        await asyncio.to_thread(self.store.delete, snapshot_id)
        self._chunks.pop(snapshot_id, None)
        self.fleet.offers.deleted(snapshot_id)
        self.loop.event("snapshot_deleted", snapshot_id=snapshot_id, reason=reason)

    # ------------------------------------------------------------------ looking after

    async def _look_after(
        self, record: KernelRecord, link: KernelAgentLink, snapshot_id: str
    ) -> None:
        """Keep automatic snapshots within bounds, and check the one just taken."""
        try:
            await self.tidy()
            if self._verify:
                await self._check(record, link, snapshot_id)
        except GpuPredictError as error:
            log.warning("Snapshot %s: %s", snapshot_id, error)

    async def tidy(self) -> list[str]:
        """Delete the automatic snapshots that are too many, and return their ids."""
        async with self._tidying:
            settings = self.loop.settings
            running = {owner_of(r.notebook, r.kernel_id) for r in self.loop.kernels.values()}
            saved = await asyncio.to_thread(self._saved)
            gone = surplus(
                saved,
                keep=settings.autosave_keep,
                budget_bytes=settings.autosave_bytes,
                running=running,
                spared=self.fleet.offers.ids(),
            )
            for snapshot_id in gone:
                with contextlib.suppress(NotFoundError):
                    await self.delete(snapshot_id, "automatic snapshots take bounded space")
            return gone

    async def _check(self, record: KernelRecord, link: KernelAgentLink, snapshot_id: str) -> None:
        """Load a snapshot in a fresh process of the kernel's Python; one at a time."""
        key = await asyncio.to_thread(load_or_create_key, self.fleet.paths.key)
        async with self._verifying:
            process = verify_in_background(self.store, snapshot_id, key, python=link.executable)
            try:
                while process.poll() is None:
                    await asyncio.sleep(VERIFY_POLL_S)
            finally:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            report = await asyncio.to_thread(read_report, self.store, snapshot_id, key)
        if report is not None:
            self.loop.event(
                "snapshot_verified",
                kernel_id=record.kernel_id,
                notebook=record.notebook,
                snapshot_id=snapshot_id,
                verified=report.verified,
                reason="; ".join(_problems(report)) or None,
            )

    def _collect(self) -> None:
        told, pause_s = False, FIRST_COLLECTION_S
        while not self._closing.wait(pause_s):
            pause_s = COLLECT_EVERY_S
            try:
                freed = self.store.collect_garbage()
            except Exception as error:
                # Whatever a library of a store raises, it may be over the next time.
                if not told:
                    log.warning(
                        "Remains of broken-off saves in %s could not be removed: %s. Saving goes "
                        "on. The next try is in %g hours; `jupyter gpu snapshots gc` tries at once",
                        self.store.shown,
                        error,
                        COLLECT_EVERY_S / 3600,
                    )
                told = True
            else:
                told = False
                if freed:
                    log.info("%d bytes of broken-off saves removed", freed)

    def _saved(self) -> list[Saved]:
        listed = self.store.list()
        self._chunks = {
            s.snapshot_id: self._chunks.get(s.snapshot_id) or self._chunks_of(s) for s in listed
        }
        return [
            Saved(
                s.snapshot_id,
                owner_of(s.notebook, s.kernel_id),
                s.created_s,
                bool(s.labels.get("automatic")),
                self._chunks[s.snapshot_id],
            )
            for s in listed
        ]

    def _chunks_of(self, info: SnapshotInfo) -> dict[str, int]:
        try:
            blobs = self.store.read(info.snapshot_id)["manifest"]["blobs"]
            return {str(name): int(nbytes) for blob in blobs for name, nbytes in blob}
        except (GpuPredictError, KeyError, TypeError, ValueError):
            return {info.snapshot_id: info.nbytes}  # of an earlier format, or deleted meanwhile

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _problems(report: VerifyReport) -> list[str]:
    wrong = [v for v in report.variables if v.status not in {"same", "not saved"}]
    return [*report.problems, *(f"{v.name}: {v.reason or v.status}" for v in wrong)]


def snapshot_model(info: SnapshotInfo) -> dict[str, Any]:
    """Return a line of the catalogue as JSON."""
    return {
        "id": info.snapshot_id,
        "name": info.name,
        "created_s": info.created_s,
        "kernel_id": info.kernel_id,
        "notebook": info.notebook,
        "bytes": info.nbytes,
        "variables": info.variables,
        "reason": info.labels.get("reason"),
        "automatic": bool(info.labels.get("automatic")),
        "verified": info.verified,
    }
