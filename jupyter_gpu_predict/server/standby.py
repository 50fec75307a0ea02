"""A second process of a kernel, launched as the first one was, ready to take its place."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client.connect import port_names, write_connection_file
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.launcher import launch_kernel

from ..devices.mps import without_limits
from ..errors import KernelLinkError
from ..kernel import messages as m
from .fleet import BOOT_TIMEOUT_S, Fleet
from .link import KernelAgentLink

_NOT_CARRIED = ("jupyter_gpu_predict", "__mp_main__")


class _StandbyProcess:
    """The little of a provisioner that a link asks for."""

    def __init__(self, process: Any) -> None:
        self.process = process
        self.pid: int | None = process.pid

    @property
    def has_process(self) -> bool:
        return True

    async def poll(self) -> int | None:
        code: int | None = self.process.poll()
        return code


class Standby:
    """A standby process with its own ports and the same key, and the agent in it."""

    def __init__(self, fleet: Fleet, km: Any) -> None:
        self.fleet = fleet
        self.km = km
        self.process: Any = None
        self.link: KernelAgentLink | None = None
        self.manager: Any = None
        self.info: dict[str, Any] = {}
        self.connection_file = ""

    async def start(self, gpu_uuid: str, config: Mapping[str, Any]) -> KernelAgentLink:
        """Launch the process with GPU `gpu_uuid` bound and put the agent into it.

        Raises
        ------
        KernelLinkError
            If it does not come up.
        """
        km, provisioner = self.km, self.km.provisioner
        if provisioner.launch_cmd is None or provisioner.launch_kwargs is None:
            raise KernelLinkError(
                f"kernel {km.kernel_id} was not started by this package's provisioner, "
                "so it cannot be started a second time; restart it once"
            )
        self.connection_file, self.info = write_connection_file(
            self._connection_file(),
            ip=km.ip,
            key=km.session.key,
            transport=km.transport,
            signature_scheme=km.session.signature_scheme,
            kernel_name=km.kernel_name,
            curve_publickey=getattr(km, "curve_publickey", None),
            curve_secretkey=getattr(km, "curve_secretkey", None),
        )
        cmd = [a.replace(km.connection_file, self.connection_file) for a in provisioner.launch_cmd]
        kwargs = {
            k: v
            for k, v in provisioner.launch_kwargs.items()
            if k not in {"env", "extra_arguments", "kernel_id", "independent"}
        }
        env = without_limits(provisioner.launch_kwargs.get("env") or os.environ, os.environ)
        loop = self.fleet.loop
        env |= loop.backend.environment(gpu_uuid, loop.kernel(km.kernel_id).target_bytes)
        self.process = await asyncio.to_thread(
            launch_kernel, cmd, env=env, independent=True, **kwargs
        )
        self.manager = AsyncIOLoopKernelManager()
        self.manager.load_connection_info(
            {k: v for k, v in self.info.items() if k != "kernel_name"}
        )
        self.manager.session.key = km.session.key
        self.link = KernelAgentLink(
            km.kernel_id, self.manager, _StandbyProcess(self.process), lambda *_: None
        )
        self.fleet.own(self.link)
        await self.link.boot(dict(config), BOOT_TIMEOUT_S)
        return self.link

    async def warm(self, modules: list[str]) -> None:
        """Import what the kernel has imported, submodules too.

        It keeps the pause short, and a library that draws random numbers when it is imported
        (sympy under torch does) must do so before the random generators are set.
        """
        wanted = tuple(n for n in modules if n != "__main__" and not n.startswith(_NOT_CARRIED))
        if self.link is not None and wanted:
            await self.link.request(m.WarmRequest(wanted), 120.0)

    async def stop(self) -> None:
        """Undo: end the process and remove its connection file."""
        if self.link is not None:
            self.fleet.disown(self.link)
            self.link = None
        if self.process is not None and self.process.poll() is None:
            os.killpg(os.getpgid(self.process.pid), signal.SIGKILL)
            await asyncio.to_thread(self.process.wait)
        if self.connection_file:
            Path(self.connection_file).unlink(missing_ok=True)

    def ports(self) -> dict[str, int]:
        """Return the standby's ports by trait name."""
        return {name: int(self.info[name]) for name in port_names}

    def _connection_file(self) -> str:
        folder, name = os.path.split(self.km.connection_file)
        stem = name.removesuffix(".json")
        return os.path.join(folder, f"{stem}-{os.urandom(4).hex()}.json")
