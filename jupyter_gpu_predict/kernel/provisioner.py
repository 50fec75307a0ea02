"""The provisioner: binds a kernel at launch and puts the agent into it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any, Protocol

import psutil
from jupyter_client.provisioning import LocalProvisioner

PROVISIONER_NAME = "gpu-provisioner"
"""Our name in the entry-point group `jupyter_client.kernel_provisioners`."""

SETTINGS_KEY = "jupyter_gpu_predict_fleet"
"""Key of the launch service in the server's `web_app.settings`."""

UNKNOWN_EXIT = -1
"""Exit code of a process that is no child of this server."""


class LaunchService(Protocol):
    """What the provisioner needs of the server extension."""

    async def before_launch(self, km: Any, env: dict[str, str]) -> dict[str, str]:
        """Return the environment that binds the kernel about to be launched."""

    async def after_launch(self, km: Any) -> None:
        """Put the agent into the kernel that was just launched; returns at once."""

    async def ended(self, km: Any, *, restart: bool, died: str | None) -> None:
        """Let go of what the kernel held; `died` says how it ended if nobody had asked it to."""


def launch_service(km: Any) -> LaunchService | None:
    """Return the extension's launch service for kernel manager `km`, if its server has one."""
    parent = km
    while parent is not None:
        web_app = getattr(parent, "web_app", None)
        if web_app is not None:
            service: LaunchService | None = web_app.settings.get(SETTINGS_KEY)
            return service
        parent = getattr(parent, "parent", None)
    return None


def is_python(kernel_spec: Any) -> bool:
    """Whether the kernelspec is one of Python, and so can carry the agent."""
    return str(getattr(kernel_spec, "language", "")).lower() in {"python", "ipython"}


class GpuProvisioner(LocalProvisioner):  # type: ignore[misc]
    """Starts kernels locally as Jupyter does, with a GPU bound and the agent inside.

    Where the server extension does not run, it is a `LocalProvisioner` and nothing more.
    """

    launch_cmd: list[str] | None = None
    launch_kwargs: dict[str, Any] | None = None
    owned_files: tuple[str, ...] = ()
    process: Any = None
    asked_to_end = False
    exit_code: int | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Ask for a GPU and set the kernel's environment."""
        service = launch_service(self.parent)
        if service is not None and is_python(self.kernel_spec):
            env = dict(kwargs.get("env") or os.environ)
            env.update(await service.before_launch(self.parent, env))
            kwargs["env"] = env
            # A kernel that polls its parent dies with a killed server and could not be re-adopted.
            kwargs["independent"] = True
        return await super().pre_launch(**kwargs)  # type: ignore[no-any-return]

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Launch, and remember how, for a later standby of the same kernel."""
        self.launch_cmd = list(cmd)
        self.launch_kwargs = dict(kwargs)
        self.asked_to_end, self.exit_code = False, None
        return await super().launch_kernel(cmd, **kwargs)

    async def post_launch(self, **kwargs: Any) -> None:
        """Put the agent into the kernel, in the background."""
        await super().post_launch(**kwargs)
        service = launch_service(self.parent)
        if service is not None:
            await service.after_launch(self.parent)

    async def cleanup(self, restart: bool = False) -> None:
        """Let the lease go and remove files a move left behind."""
        service = launch_service(self.parent)
        if service is not None:
            died = None if self.asked_to_end else how_it_died(self.exit_code)
            await service.ended(self.parent, restart=restart, died=died)
        for path in self.owned_files:
            Path(path).unlink(missing_ok=True)
        self.owned_files = ()
        await super().cleanup(restart=restart)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Note that the kernel ends because it is asked to."""
        await self._note_request()
        await super().shutdown_requested(restart=restart)

    async def send_signal(self, signum: int) -> None:
        """Send a signal, and note one that is meant to end the kernel."""
        if signum in {signal.SIGTERM, signal.SIGKILL}:
            await self._note_request()
        await super().send_signal(signum)

    async def wait(self) -> int | None:
        """Wait for the process to end."""
        code = await super().wait()
        self.exit_code = code if code is not None else self.exit_code
        return code  # type: ignore[no-any-return]

    async def _note_request(self) -> None:
        # Jupyter also kills what is dead already, when it restarts a kernel that died.
        if self.has_process:
            code = await self.poll()
            if code is None:
                self.asked_to_end = True
            else:
                self.exit_code = code

    def replace_process(self, process: Any, owned_files: tuple[str, ...]) -> Any:
        """Put `process` in the place of the running one and return the former one."""
        former = self.process
        self.process = process
        self.pid = process.pid
        self.pgid = os.getpgid(process.pid)
        self.owned_files = (*self.owned_files, *owned_files)
        return former


def how_it_died(exit_code: int | None) -> str | None:
    """Return in words how a kernel died; ``None`` if it ended by itself, as by `exit`."""
    if exit_code == 0:
        return None
    if exit_code is None or exit_code == UNKNOWN_EXIT:
        return "its process was gone"
    if exit_code > 0:
        return f"it ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    also = {
        "SIGKILL": ", as the system does when memory runs out",
        "SIGSEGV": ", a fault in compiled code",
    }
    return f"it was ended by {name}{also.get(name, '')}"


class AdoptedProcess:
    """A running kernel of an earlier server, with the face of `subprocess.Popen`.

    It is no child of this server, so its exit code cannot be known: `UNKNOWN_EXIT`
    stands for "gone".
    """

    stdin = stdout = stderr = None

    def __init__(self, pid: int, created_s: float) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)
        if abs(self._process.create_time() - created_s) > 1.0:
            raise psutil.NoSuchProcess(pid)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return ``None`` while it runs."""
        try:
            gone = self._process.status() == psutil.STATUS_ZOMBIE or not self._process.is_running()
        except psutil.NoSuchProcess:
            gone = True
        if gone:
            self.returncode = UNKNOWN_EXIT
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.wait(timeout)
        self.returncode = UNKNOWN_EXIT
        return UNKNOWN_EXIT

    def send_signal(self, signum: int) -> None:
        """Send a signal to it."""
        os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()
