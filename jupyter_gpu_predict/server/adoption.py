"""Take over the running kernels of a server that was killed."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.connect import port_names
from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_server._tz import utcnow

from ..core.model import Lease, LeaseState
from ..kernel.provisioner import AdoptedProcess
from ..store.records import KernelRecord
from ..store.trace_store import Store
from .fleet import Fleet

log = logging.getLogger(__name__)


class Adoption:
    """Remembers each kernel in the store, and finds those whose server is gone."""

    def __init__(self, store: Store, server: Any) -> None:
        self.store = store
        self.server = server
        self.mkm = server.kernel_manager
        me = psutil.Process()
        self._owner = me.pid, me.create_time()

    def remember(self, fleet: Fleet, kernel_id: str) -> None:
        """Write down what another server would need to take this kernel over."""
        km = fleet.managers[kernel_id]
        provisioner = km.provisioner
        process = psutil.Process(provisioner.pid)
        self.store.save_kernel(
            KernelRecord(
                kernel_id=kernel_id,
                kernel_name=km.kernel_name,
                pid=process.pid,
                pid_created_s=process.create_time(),
                pgid=provisioner.pgid,
                connection_file=km.connection_file,
                ports={name: getattr(km, name) for name in port_names},
                notebook=fleet.loop.kernel(kernel_id).notebook,
                session_id=None,
                session_name=None,
                session_type=None,
                root_dir=self.server.root_dir,
                owner_pid=self._owner[0],
                owner_created_s=self._owner[1],
                argv=tuple(provisioner.launch_cmd or ()),
                cwd=None if provisioner.cwd is None else str(provisioner.cwd),
            )
        )

    async def adopt(self, fleet: Fleet) -> int:
        """Take over every kernel of this root folder whose server is gone; return how many."""
        leases = {x.kernel_id: x for x in await asyncio.to_thread(self.store.leases)}
        records = await asyncio.to_thread(self.store.kernels)
        adopted = 0
        for record in records:
            if _alive(record.owner_pid, record.owner_created_s):
                continue
            if not _alive(record.pid, record.pid_created_s):
                await self._bury(record, leases.get(record.kernel_id))
            elif record.root_dir == self.server.root_dir:
                try:
                    await self._adopt(fleet, record, leases.get(record.kernel_id))
                    adopted += 1
                except Exception:
                    # One kernel whose files are broken must not cost the others their server.
                    log.exception("Kernel %s could not be taken over", record.kernel_id)
        return adopted

    async def _bury(self, record: KernelRecord, lease: Lease | None) -> None:
        if lease is not None:
            over = replace(lease, state=LeaseState.RELEASED)
            await asyncio.to_thread(self.store.save_lease, over)
        await asyncio.to_thread(self.store.forget_kernel, record.kernel_id)

    async def _adopt(self, fleet: Fleet, record: KernelRecord, lease: Lease | None) -> None:
        km, mkm, kernel_id = self._manager(record), self.mkm, record.kernel_id
        mkm._kernels[kernel_id] = km
        mkm._kernel_connections[kernel_id] = 0
        try:
            link = fleet.connect(km)
            entry = fleet.record(km, link, record.notebook)
            if lease is not None:
                if lease.state is LeaseState.MIGRATING:
                    lease = replace(lease, state=LeaseState.BOUND)
                await fleet.loop.leases.adopt(lease)
            await mkm._finish_kernel_start(kernel_id)
            km.start_restarter()
        except BaseException:
            fleet.let_go(kernel_id)
            mkm._kernels.pop(kernel_id, None)
            mkm._kernel_connections.pop(kernel_id, None)
            raise
        fleet.loop.event("kernel_adopted", kernel_id=kernel_id, notebook=record.notebook)
        fleet.loop.kernel_started(entry)
        await asyncio.to_thread(self.remember, fleet, kernel_id)
        await self._session(record)
        fleet.greet(kernel_id)

    def _manager(self, record: KernelRecord) -> Any:
        km = self.mkm.kernel_manager_factory(
            connection_file=record.connection_file,
            parent=self.mkm,
            log=self.mkm.log,
            kernel_name=record.kernel_name,
        )
        km.kernel_id = record.kernel_id
        km.load_connection_file(record.connection_file)
        # The ports are the running process's: a restart must not look for random ones.
        km._random_port_names = []
        km._connection_file_written = True
        provisioner = KernelProvisionerFactory.instance(
            parent=self.server
        ).create_provisioner_instance(record.kernel_id, km.kernel_spec, parent=km)
        env = _environment(record.pid)
        provisioner.process = AdoptedProcess(record.pid, record.pid_created_s)
        provisioner.pid, provisioner.pgid = record.pid, record.pgid
        provisioner.cwd = record.cwd
        provisioner.connection_info = km.get_connection_info()
        # Or a restart would choose other ports, and open websockets would be deaf to them.
        provisioner.ports_cached = True
        provisioner.launch_cmd = list(record.argv)
        provisioner.launch_kwargs = {"env": env, "cwd": record.cwd}
        km.provisioner = provisioner
        km._launch_args = {"env": env, "cwd": record.cwd}
        km._attempted_start = True
        km.ready.set_result(None)
        km.execution_state, km.reason, km.last_activity = "idle", "", utcnow()
        return km

    async def _session(self, record: KernelRecord) -> None:
        """Show the kernel under its notebook again: Jupyter's own sessions died with the server."""
        sessions = self.server.session_manager
        if record.notebook is None or await sessions.session_exists(path=record.notebook):
            return
        await sessions.save_session(
            sessions.new_session_id(),
            path=record.notebook,
            name=Path(record.notebook).name,
            type="notebook",
            kernel_id=record.kernel_id,
        )


def _alive(pid: int, created_s: float) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            abs(process.create_time() - created_s) < 1.0
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def _environment(pid: int) -> Mapping[str, str]:
    raw = Path(f"/proc/{pid}/environ").read_bytes()
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {os.fsdecode(k): os.fsdecode(v) for k, _, v in pairs}
