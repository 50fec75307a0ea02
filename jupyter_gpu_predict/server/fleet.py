"""The running kernels of this server: their launch, their agents, their messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from weakref import WeakSet

import psutil

from ..control.loop import ControlLoop
from ..control.records import KernelRecord
from ..core.model import Lease, LeaseState
from ..devices.mps import limit_of
from ..errors import GpuPredictError, LinkTimeoutError
from ..kernel import messages as m
from ..kernel.provisioner import is_python
from ..snapshots.stores import SnapshotStore
from .calls import Calls
from .connection import Sent, queue_of, send_for
from .link import KernelAgentLink
from .notices import Notices
from .offers import Offers
from .paths import Paths, notebook_path

log = logging.getLogger(__name__)

BOOT_TIMEOUT_S = 60.0
GREET_TIMEOUT_S = 20.0


class Fleet:
    """Launches, watches and forgets kernels; the provisioner and the connections speak to it."""

    def __init__(
        self,
        loop: ControlLoop,
        paths: Paths,
        store: SnapshotStore,
        *,
        root_dir: str,
        claim_deadline_s: float,
        orphan_timeout_s: float,
        recompute: bool,
        observe_cells: bool,
        remember: Callable[[Fleet, str], None],
        forget: Callable[[str], None],
    ) -> None:
        self.loop = loop
        self.paths = paths
        self.store = store
        self.root_dir = root_dir
        self._notebooks: dict[str, str | None] = {}
        self.claim_deadline_s = claim_deadline_s
        self.orphan_timeout_s = orphan_timeout_s
        self.recompute = recompute
        self.observe_cells = observe_cells
        self.calls = Calls(self)
        self.offers = Offers(store, loop.event)
        self.notices = Notices(self)
        self.links: dict[str, KernelAgentLink] = {}
        self.managers: dict[str, Any] = {}
        self._remember = remember
        self._forget = forget
        self._held: dict[str, int] = {}
        self._own_sessions: dict[bytes, str] = {}
        self._unanswered: dict[str, dict[str, OrderedDict[str, Sent]]] = {}
        self._connections: WeakSet[Any] = WeakSet()
        self._boots: dict[str, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._placing = asyncio.Lock()
        self._closed = False

    # ------------------------------------------------------------------ launch service

    async def before_launch(self, km: Any, env: dict[str, str]) -> dict[str, str]:
        """Give the kernel about to be launched a lease and return its environment."""
        kernel_id = km.kernel_id
        await self._drop(kernel_id, "it is being restarted")
        notebook = notebook_path(env.get("JPY_SESSION_NAME"), self.root_dir)
        self._notebooks[kernel_id] = notebook
        lease = await self.launch_lease(kernel_id, notebook)
        environment = self.loop.backend.environment
        return {} if lease is None else environment(lease.gpu_uuid, lease.bytes)

    async def launch_lease(self, kernel_id: str, notebook: str | None) -> Lease | None:
        """Reserve what this notebook's earlier kernels needed, on the GPU with the most room.

        Nothing waits here: where there is no room, the kernel starts with nothing set aside and
        its first cell claims.
        """
        loop = self.loop
        await loop.begun()
        wanted = 0
        if notebook is not None:
            runs = await asyncio.to_thread(loop.store.cell_runs, notebook=notebook)
            wanted = max((r.peak_bytes for r in runs), default=0)
        # One at a time: kernels opened at once would all see the same GPU empty.
        async with self._placing:
            rooms = []
            for status in loop.statuses:
                risk = loop.risks.get(status.uuid)
                if (
                    status.lost
                    or status.uuid in loop.cordoned
                    or (risk and risk.level == "critical")
                ):
                    continue
                room = loop.free_bytes(status.uuid)
                rooms.append((room, -len(loop.leases.on(status.uuid)), -status.index, status.uuid))
            if not rooms:
                return None
            free, _, _, uuid = max(rooms)
            if loop.gpu(uuid).parent is not None and 0 < wanted <= free:
                wanted = free  # a MIG slice is not shared
            if wanted == 0 or wanted > free:
                return await loop.leases.bind(kernel_id, uuid, 0)
            expires = loop.clock() + loop.settings.reservation_s
            return await loop.leases.reserve(kernel_id, uuid, wanted, expires)

    async def after_launch(self, km: Any) -> None:
        """Start to put the agent into the kernel that was just launched."""
        kernel_id = km.kernel_id
        link = self.connect(km)
        record = self.record(km, link, self._notebooks.get(kernel_id))
        self.loop.kernel_started(record)
        lease = self.loop.leases.get(kernel_id)
        if lease is not None and lease.state is LeaseState.RESERVED:
            reason = f"Set aside at launch what earlier kernels of {record.notebook} took"
            self.loop.prebound(record, lease.gpu_uuid, lease.bytes, 0, reason)
        if not is_python(km.kernel_spec):
            record.ready = True
            await self._keep(kernel_id)
            return
        self.hold(kernel_id)
        self._boots[kernel_id] = asyncio.ensure_future(self._boot(km, link, record))

    def connect(self, km: Any) -> KernelAgentLink:
        """Open the link to a kernel process."""
        kernel_id = km.kernel_id
        link = KernelAgentLink(
            kernel_id, km, km.provisioner, lambda t, c: self.notices.take(kernel_id, t, c)
        )
        self.own(link)
        self.links[kernel_id] = link
        self.managers[kernel_id] = km
        return link

    def adopt_link(self, kernel_id: str, link: KernelAgentLink, provisioner: Any) -> None:
        """Let `link` be the kernel's link from now on: the kernel lives in another process."""
        link.provisioner = provisioner
        link.on_notice(lambda t, c: self.notices.take(kernel_id, t, c))
        self.links[kernel_id] = link
        record = self.loop.kernel(kernel_id)
        record.port = link
        self._is_ready(record, link)

    def _is_ready(self, record: KernelRecord, link: KernelAgentLink) -> None:
        mps = any(s.mps for s in self.loop.statuses)
        record.ready, record.limit_bytes = True, limit_of(link.pid) if mps else None

    def own(self, link: KernelAgentLink) -> None:
        """Know the link's messages as our own."""
        self._own_sessions[link.wire.session.session.encode()] = link.kernel_id

    def disown(self, link: KernelAgentLink) -> None:
        """Close a link and forget its messages."""
        self._own_sessions.pop(link.wire.session.session.encode(), None)
        link.close()

    def record(self, km: Any, link: KernelAgentLink, notebook: str | None) -> KernelRecord:
        """Return a new record of a kernel, with what its notebook's cells took earlier."""
        record = KernelRecord(
            kernel_id=km.kernel_id,
            kernel_name=km.kernel_name,
            notebook=notebook,
            port=link,
            started_s=self.loop.clock(),
            last_used_s=self.loop.clock(),
        )
        if notebook is not None:
            for run in self.loop.store.cell_runs(notebook=notebook):
                if run.peak_bytes:
                    record.peaks[run.digest] = run.peak_bytes
                record.lasted(run)
        return record

    def agent_config(
        self, kernel_id: str, lease: Lease | None, record: KernelRecord
    ) -> dict[str, Any]:
        """Return the configuration of a kernel's agent."""
        import dill

        return {
            "kernel_id": kernel_id,
            "device": self.loop.backend.torch_device,
            "simulated": self.loop.backend.simulated,
            "gpu_uuid": lease.gpu_uuid if lease else None,
            "lease_bytes": lease.bytes if lease and lease.state is not LeaseState.SUSPENDED else 0,
            "epoch": lease.epoch if lease else 0,
            "spill_dir": str(self.paths.spill),
            "snapshot_folder": self.store.url,
            "key_path": str(self.paths.key),
            "dill_dir": str(Path(dill.__file__).parent.parent),
            "claim_deadline_s": self.claim_deadline_s,
            "orphan_timeout_s": self.orphan_timeout_s,
            "notebook": record.notebook,
            "server_pid": os.getpid(),
            "peaks": record.peaks,
            "durations": record.durations,
            "long_cell_s": self.long_cell_s,
            "recompute": self.recompute,
            "observe_cells": self.observe_cells,
        }

    @property
    def long_cell_s(self) -> float:
        """From which expected duration a cell is preceded by a snapshot; 0 for never."""
        settings = self.loop.settings
        return settings.autosave_long_s if settings.autosave else 0.0

    def tell_settings(self) -> None:
        """Tell every kernel the settings that it acts on by itself."""
        for kernel_id, link in self.links.items():
            if link.has_agent:
                self._spawn(self._tell_settings(kernel_id, link))

    async def _tell_settings(self, kernel_id: str, link: KernelAgentLink) -> None:
        try:
            await link.request(m.SettingsRequest(self.long_cell_s), 10.0)
        except GpuPredictError as error:
            log.warning("Kernel %s did not hear of the new settings: %s", kernel_id, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _boot(self, km: Any, link: KernelAgentLink, record: KernelRecord) -> None:
        kernel_id = km.kernel_id
        try:
            offer = await self.offers.find(kernel_id, record.notebook)
            config = self.agent_config(kernel_id, self.loop.leases.get(kernel_id), record)
            await link.boot({**config, "offer": offer}, BOOT_TIMEOUT_S)
            await self._keep(kernel_id)
        except GpuPredictError as error:
            log.warning("Kernel %s runs without the agent: %s", kernel_id, error)
            self.loop.event("agent_failed", kernel_id=kernel_id, reason=str(error))
            await self._keep(kernel_id)
        finally:
            self._is_ready(record, link)
            self.release(kernel_id, repeat_unanswered=False)
            self.loop.wake()

    async def _keep(self, kernel_id: str) -> None:
        """Remember a kernel for the next server, with or without the agent: the driver may hold it.

        One that has just died is nothing to remember.
        """
        with contextlib.suppress(psutil.NoSuchProcess, KeyError):
            await asyncio.to_thread(self._remember, self, kernel_id)

    def greet(self, kernel_id: str) -> None:
        """Wait in the background until an adopted kernel answers, however long its cell lasts."""
        self._boots[kernel_id] = asyncio.ensure_future(self._greet(kernel_id))

    async def _greet(self, kernel_id: str) -> None:
        link, record = self.links[kernel_id], self.loop.kernel(kernel_id)
        while is_python(self.managers[kernel_id].kernel_spec):
            try:
                if (await link.listen(GREET_TIMEOUT_S)).get("changed"):
                    record.changed_s = self.loop.clock()
                # The last server may have died in the middle of a move.
                await link.request(m.ReleaseHoldRequest(), GREET_TIMEOUT_S)
                await self._tell_settings(kernel_id, link)
                break
            except LinkTimeoutError:
                log.info("Kernel %s is too busy to answer; it is kept", kernel_id)
            except GpuPredictError as error:
                log.warning("Kernel %s was taken over but does not speak: %s", kernel_id, error)
                break
        self._is_ready(record, link)
        self.loop.wake()

    def let_go(self, kernel_id: str) -> None:
        """Close the link to a kernel and forget its manager."""
        link = self.links.pop(kernel_id, None)
        if link is not None:
            self.disown(link)
        self.managers.pop(kernel_id, None)

    async def ended(self, km: Any, *, restart: bool, died: str | None) -> None:
        """Let go of a kernel that was shut down, or has died, or is being restarted."""
        if self._closed:
            return
        if died is not None and restart:
            self.offers.died(km.kernel_id, died)
        elif not restart:
            self.offers.settled(km.kernel_id)
        if km.kernel_id in self.links or km.kernel_id in self.loop.kernels:
            await self._drop(km.kernel_id, "restart" if restart else "shut down")

    async def _drop(self, kernel_id: str, reason: str) -> None:
        if (task := self._boots.pop(kernel_id, None)) is not None and not task.done():
            task.cancel()
        self.let_go(kernel_id)
        # The next process of this id has nothing to do with what the last one left undone.
        self._unanswered.pop(kernel_id, None)
        await self.loop.kernel_ended(kernel_id, reason)
        await asyncio.to_thread(self._forget, kernel_id)

    async def close(self) -> None:
        """Close every link; the kernels end with the server, so their leases do too."""
        self._closed = True
        for kernel_id in list(self.loop.kernels):
            await self.loop.kernel_ended(kernel_id, "the server stops")
            await asyncio.to_thread(self._forget, kernel_id)
        left = [*self._boots.values(), *self._telling]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for link in list(self.links.values()):
            self.disown(link)
        self.links.clear()

    # ------------------------------------------------------------------ connections

    def hold(self, kernel_id: str) -> None:
        """Keep what notebooks send to this kernel until `release`."""
        self._held[kernel_id] = self._held.get(kernel_id, 0) + 1

    def release(self, kernel_id: str, *, repeat_unanswered: bool) -> None:
        """Send on what was kept."""
        left = self._held.get(kernel_id, 0) - 1
        if left > 0:
            self._held[kernel_id] = left
            return
        self._held.pop(kernel_id, None)
        connections = self.connections(kernel_id)
        for connection in connections:
            connection.gpu_release(repeat_unanswered=repeat_unanswered)
        if repeat_unanswered:
            self._repeat_for_closed_tabs(kernel_id, {c.session_key for c in connections})

    def _repeat_for_closed_tabs(self, kernel_id: str, open_tabs: set[str]) -> None:
        """Let a run-all go on whose tab is closed; its answers wait in Jupyter's buffer."""
        link, km = self.links[kernel_id], self.managers[kernel_id]
        buffer = km.parent._kernel_buffers.get(kernel_id) or {}
        for session_key, messages in self._unanswered.get(kernel_id, {}).items():
            if session_key in open_tabs:
                continue
            kept = buffer.get("session_key") == session_key and buffer.get("channels")
            stream = buffer["channels"]["shell"] if kept else link.wire.shell
            for sent in list(messages.values()):
                send_for(link.wire.session, stream, sent.message)
            if not kept:
                messages.clear()  # nobody will hear the answers

    def holding(self, kernel_id: str) -> bool:
        """Whether messages for this kernel are held now."""
        return kernel_id in self._held

    def connections(self, kernel_id: str) -> list[Any]:
        """Return the open websocket connections to a kernel."""
        return [
            c
            for c in self._connections
            if c.kernel_id == kernel_id and c.channels and not c.gpu_closed
        ]

    def unanswered(self, kernel_id: str, session_key: str) -> OrderedDict[str, Sent]:
        """Return what a tab sent and has no answer to."""
        return self._unanswered.setdefault(kernel_id, {}).setdefault(session_key, OrderedDict())

    def connected(self, connection: Any) -> None:
        """Take note of a connection."""
        self._connections.add(connection)

    def is_own(self, frames: list[bytes]) -> bool:
        """Whether a message answers one of our own requests."""
        start = frames.index(b"<IDS|MSG>")
        parent = bytes(frames[start + 3])
        return any(session in parent for session in self._own_sessions)

    def queue_changed(self, kernel_id: str) -> None:
        """Count the execute requests that wait in or before the kernel."""
        record = self.loop.kernels.get(kernel_id)
        if record is None:
            return
        queue = queue_of(self._unanswered.get(kernel_id, {}).values())
        record.queued_cells = tuple(sent.cell for sent in queue if sent.cell is not None)
        if record.unanswered(len(queue), self.loop.clock()):
            self.loop.wake()
