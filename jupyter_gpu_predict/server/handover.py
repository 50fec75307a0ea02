"""Swap the process behind a kernel id, under open websockets.

A restart with new ports leaves open websockets deaf, and `restart_kernel` stops the old process
first. So the streams of each connection are made anew against the new process while its messages
are held, and the old process goes only when all of them have heard the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from jupyter_client.connect import port_names

from ..errors import LinkTimeoutError
from .link import KernelAgentLink
from .standby import Standby

HEAR_TIMEOUT_S = 10.0


class Handover:
    """The swap of one kernel; until `commit` all of it can be undone."""

    def __init__(
        self,
        km: Any,
        standby: Standby,
        link: KernelAgentLink,
        connections: list[Any],
        still_wanted: Callable[[], None],
    ) -> None:
        self.still_wanted = still_wanted
        self.reaping: asyncio.Future[Any] | None = None
        self.link = link
        self.km = km
        self.mkm = km.parent
        self.standby = standby
        self.connections = connections
        self._old_ports = {name: getattr(km, name) for name in port_names}
        self._old_streams: list[tuple[Any, dict[str, Any]]] = []

    async def commit(self) -> None:
        """Switch over; on failure everything is as it was.

        Raises
        ------
        LinkTimeoutError
            If a connection's new stream stays silent.
        """
        try:
            self._set_ports(self.standby.ports())
            for connection in self.connections:
                old, connection.channels = connection.channels, {}
                self._old_streams.append((connection, old))
                connection.create_stream()
            await asyncio.gather(*(self._heard(c.channels["iopub"]) for c in self.connections))
            self.still_wanted()
        except BaseException:
            self._undo()
            raise
        self._swap_process()

    def _undo(self) -> None:
        for connection, old in self._old_streams:
            for stream in connection.channels.values():
                stream.on_recv(None)
                stream.close(linger=0)
            connection.channels = old
        self._set_ports(self._old_ports)

    def _set_ports(self, ports: dict[str, int]) -> None:
        km = self.km
        km._close_control_socket()
        for name, port in ports.items():
            setattr(km, name, port)
        km.cleanup_connection_file()
        km.write_connection_file()
        km.provisioner.connection_info = km.get_connection_info()
        km.__dict__.pop("_kernel_info_future", None)

    async def _heard(self, iopub: Any) -> None:
        """Wait until a new subscription is live: once something came through it."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        iopub.on_recv(lambda _: heard.set())
        end = loop.time() + HEAR_TIMEOUT_S
        while not heard.is_set():
            await self.link.describe()
            await asyncio.sleep(0.01)
            if loop.time() > end:
                raise LinkTimeoutError(
                    f"kernel {self.km.kernel_id}: its new process is not heard on iopub"
                )
        iopub.stop_on_recv()

    def _swap_process(self) -> None:
        km, mkm, kernel_id = self.km, self.mkm, self.km.kernel_id
        provisioner, standby = km.provisioner, self.standby
        old_pgid, old_file = provisioner.pgid, standby.connection_file
        former = provisioner.replace_process(standby.process, (old_file,))
        activity, state = km.last_activity, km.execution_state
        mkm.stop_watching_activity(kernel_id)
        mkm.start_watching_activity(kernel_id)
        km.last_activity, km.execution_state = activity, state
        self._swap_buffer()
        mkm._kernel_ports[kernel_id] = km.ports
        for connection, old in self._old_streams:
            for stream in old.values():
                stream.flush()
                stream.on_recv(None)
                stream.close()
            for stream in connection.channels.values():
                stream.on_recv_stream(connection.handle_outgoing_message)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(old_pgid, signal.SIGKILL)
        # A process stuck in the driver of a failing GPU may take long to die.
        self.reaping = asyncio.ensure_future(asyncio.to_thread(former.wait))

    def _swap_buffer(self) -> None:
        """Let the buffer of a closed tab go on with the new process."""
        mkm, kernel_id = self.mkm, self.km.kernel_id
        buffers = mkm._kernel_buffers
        if kernel_id not in buffers or not buffers[kernel_id]["channels"]:
            return
        key, kept = buffers[kernel_id]["session_key"], buffers[kernel_id]["buffer"]
        identity = key.partition(":")[2].encode()
        channels = {}
        for name in buffers[kernel_id]["channels"]:
            channels[name] = getattr(self.km, f"connect_{name}")(identity=identity)
            channels[name].channel = name
        mkm.start_buffering(kernel_id, key, channels)
        buffers[kernel_id]["buffer"] = kept
