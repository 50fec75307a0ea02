"""A real Jupyter server with this extension and simulated GPUs, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from jupyter_gpu_predict.demo.client import API, Execution, Notebook, ServerProcess

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

SERVER_OPTIONS = {
    "GpuPredict.device_backend": "simulated",
    "GpuPredict.simulated_gpus": 2,
    "GpuPredict.simulated_memory": "512MiB",
}


class TestServer(ServerProcess):
    """A server that closes what was opened on it."""

    __test__ = False

    def __init__(self, folder: Path, **more: Any) -> None:
        super().__init__(folder, root=folder / "root", **more)
        self.root.mkdir(parents=True, exist_ok=True)
        self._extension = bool(more.get("extension", True))
        self._notebooks: list[Notebook] = []

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it answers and, with the extension, has read its GPUs and made a plan."""
        await super().ready(timeout_s)

        async def planned() -> bool:
            return (await self.get(f"{API}/plan"))["plan"] is not None

        if self._extension:
            await until(planned, timeout_s)

    async def open(self, path: str | None = None, name: str = "python3") -> Notebook:
        """Open a notebook as `ServerProcess` does."""
        notebook = await super().open(path, name)
        self._notebooks.append(notebook)
        return notebook

    async def opened(self, path: str | None = None, code: str = "") -> Notebook:
        """Open a notebook, and wait until its agent is there and `code` has run."""
        notebook = await self.open(path)
        execution = await notebook.run(code)
        assert execution.status == "ok", execution.text
        return notebook

    async def end(self, notebook: Notebook) -> None:
        """Shut a notebook's kernel down and wait until nothing is known of it."""
        await notebook.close()
        await self.request("DELETE", f"api/kernels/{notebook.kernel_id}")

        async def gone() -> bool:
            return (await self.request("GET", f"{API}/kernels/{notebook.kernel_id}"))[0] == 404

        await until(gone)

    async def do(self, notebook: Notebook, kind: str, body: Any = None) -> dict[str, Any]:
        """Start an operation on a kernel, wait for its end and return it."""
        started = await self.post(f"{API}/kernels/{notebook.kernel_id}/{kind}", body)
        ended: dict[str, Any] = await self.operation(started)
        return ended

    async def kernel(self, notebook: Notebook) -> dict[str, Any]:
        """Return what is known of a kernel."""
        model: dict[str, Any] = await self.get(f"{API}/kernels/{notebook.kernel_id}")
        return model

    async def stop(self, timeout_s: float = 60.0) -> None:
        """Close the notebooks and stop.

        Raises
        ------
        AssertionError
            If the server does not stop by itself.
        """
        for notebook in self._notebooks:
            await notebook.close()
        if self.process is not None and self.process.poll() is None:
            await super().stop(timeout_s)
            log = self.log.read_text(errors="replace")[-3000:]
            assert self.process.returncode != -signal.SIGKILL, f"it does not stop:\n{log}"

    def end_left(self) -> None:
        """Kill the kernels that outlived a server that was killed."""
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.folder) in part for part in process.info["cmdline"] or ()):
                process.kill()


async def until(what: Callable[[], Awaitable[Any]], timeout_s: float = 60.0) -> Any:
    """Ask again and again until the answer is true, and return it."""
    end = time.monotonic() + timeout_s
    while not (answer := await what()):
        assert time.monotonic() < end, f"still {answer!r} after {timeout_s:g} s"
        await asyncio.sleep(0.1)
    return answer


async def until_gone(pid: int) -> None:
    """Wait until a process is over, whether or not somebody has asked how it ended."""

    async def gone() -> bool:
        try:
            return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    await until(gone)


async def started(notebook: Notebook, code: str) -> Execution:
    """Start a cell and return when it runs: an interrupt before that goes to nothing."""
    execution = await notebook.start(f"print('running', flush=True)\n{code}")

    async def runs() -> bool:
        return "running" in execution.text

    await until(runs)
    return execution


@contextlib.contextmanager
def running(process: TestServer, run: Run[Any]) -> Iterator[TestServer]:
    """Start a server, and stop it at the end of the block whatever happens in it."""
    process.start()
    try:
        run(process.ready())
        yield process
    finally:
        try:
            run(process.stop())
        finally:
            process.kill()
            process.end_left()


@contextlib.contextmanager
def event_loop() -> Iterator[Run[Any]]:
    """Give a function that runs coroutines on one event loop, and end what is left on it."""
    loop = asyncio.new_event_loop()
    try:
        yield loop.run_until_complete
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
