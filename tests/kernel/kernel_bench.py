"""A server's kernels as the tests on real kernels drive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from live_server import until

from jupyter_gpu_predict.demo.client import API, Notebook, ServerProcess

Model = dict[str, Any]


class Bench:
    """One server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    async def model(self, notebook: Notebook) -> Model:
        """Return what the server knows of a kernel."""
        model: Model = await self.server.get(f"{API}/kernels/{notebook.kernel_id}")
        return model

    async def until_model(self, notebook: Notebook, holds: Callable[[Model], Any]) -> Model:
        """Wait until a kernel is there and its model satisfies `holds`."""

        async def look() -> Model | None:
            status, model = await self.server.request("GET", f"{API}/kernels/{notebook.kernel_id}")
            return model if status == 200 and holds(model) else None

        found: Model = await until(look)
        return found

    async def do(self, notebook: Notebook, kind: str, **body: Any) -> Model:
        """Run an operation on a kernel to its end and return it."""
        started = await self.server.post(f"{API}/kernels/{notebook.kernel_id}/{kind}", body)
        operation: Model = await self.server.operation(started)
        return operation

    async def suspend(self, notebook: Notebook) -> Model:
        """Take a kernel's memory back and return the operation's result."""

        async def reclaimed() -> Model | None:
            operation = await self.do(notebook, "reclaim", wait=True)
            if operation["state"] == "failed" and "running a cell" in operation["error"]:
                return None  # a reply goes out shortly before its handler is over
            assert operation["state"] == "done", operation
            result: Model = operation["result"]
            return result

        result: Model = await until(reclaimed)
        assert result["suspended_bytes"] > 0
        return result

    async def say(self, notebook: Notebook, code: str, **content: Any) -> str:
        """Run a cell that must succeed and return its text."""
        execution = await notebook.run(code, **content)
        assert execution.status == "ok", execution.text
        return execution.text

    async def close(self, *notebooks: Notebook) -> None:
        """Shut kernels down."""
        for notebook in notebooks:
            await notebook.close()
            await self.server.request("DELETE", f"api/kernels/{notebook.kernel_id}")
