"""A real Jupyter server with this extension and simulated GPUs, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jupyter_gpu_predict.demo.client import Notebook, ServerProcess

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
        self._notebooks: list[Notebook] = []

    async def open(self, path: str | None = None, name: str = "python3") -> Notebook:
        """Open a notebook as `ServerProcess` does."""
        notebook = await super().open(path, name)
        self._notebooks.append(notebook)
        return notebook

    async def stop(self, timeout_s: float = 20.0) -> None:
        """Close the notebooks and stop."""
        for notebook in self._notebooks:
            await notebook.close()
        await super().stop(timeout_s)


@contextlib.contextmanager
def running(process: TestServer, run: Run[Any]) -> Iterator[TestServer]:
    """Start a server, and stop it at the end of the block whatever happens in it."""
    process.start()
    try:
        run(process.ready())
        yield process
    finally:
        run(process.stop())
        process.kill()
