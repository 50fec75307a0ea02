"""A server that is killed loses no kernel; one that is stopped ends them as Jupyter does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import SERVER_OPTIONS, TestServer, started, until, until_gone

from jupyter_gpu_predict.demo.client import API, Notebook


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Folder of a server; what its kernels left running is ended."""
    yield tmp_path
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(tmp_path) in (entry / "cmdline").read_text():
                    os.kill(int(entry.name), 9)


def test_a_killed_servers_kernels_are_taken_over(folder: Path) -> None:
    async def story() -> None:
        first = TestServer(folder, options=SERVER_OPTIONS)
        first.start()
        await first.ready()
        notebook = await first.opened("kept.ipynb", "import os, torch; t = torch.ones(1 << 20)")
        gone = await first.opened("gone.ipynb", "1")
        for other in (notebook, gone):
            await until(lambda n=other: first.kernel(n))
        await until(lambda: _suspended(first, notebook))
        before = await first.kernel(notebook)
        dead_pid = (await first.kernel(gone))["pid"]
        await notebook.close()
        await gone.close()
        first.kill()
        os.kill(dead_pid, 9)

        second = TestServer(folder, options=SERVER_OPTIONS)
        second.start()
        try:
            await second.ready()

            async def adopted() -> bool:
                status, _ = await second.request("GET", f"{API}/kernels/{notebook.kernel_id}")
                return status == 200

            await until(adopted)
            after = await until(lambda: _known(second, notebook))
            assert after["pid"] == before["pid"]
            assert after["lease"]["gpu_uuid"] == before["lease"]["gpu_uuid"]
            assert after["state"] == "suspended"
            assert after["suspended_bytes"] == before["suspended_bytes"]
            assert (await second.request("GET", f"{API}/kernels/{gone.kernel_id}"))[0] == 404
            sessions = await second.get("api/sessions")
            assert [(s["path"], s["kernel"]["id"]) for s in sessions] == [
                ("kept.ipynb", notebook.kernel_id)
            ]
            tab = Notebook(second, notebook.kernel_id)
            await tab.connect()
            assert (await tab.run("float(t.sum())")).text == str(float(1 << 20))
            sleeping = await started(tab, "import time; time.sleep(60)")
            await second.post(f"api/kernels/{notebook.kernel_id}/interrupt")
            assert (await tab.finish(sleeping)).reply["ename"] == "KeyboardInterrupt"
            moved = await second.do(tab, "migrate")
            assert moved["state"] == "done", moved
            assert (await tab.run("float(t.sum())")).text == str(float(1 << 20))
            os.kill((await second.kernel(tab))["pid"], 9)
            await until(lambda: _restarted(tab))
            assert (await tab.run("'t' in globals()")).text == "False"
            await tab.close()
        finally:
            await second.stop()
            second.kill()

    asyncio.run(story())


def test_a_stopped_server_ends_its_kernels(folder: Path) -> None:
    async def story() -> None:
        server = TestServer(folder, options=SERVER_OPTIONS)
        server.start()
        try:
            await server.ready()
            notebook = await server.opened("ends.ipynb", "1")
            pid = int((await server.kernel(notebook))["pid"])
        finally:
            await server.stop()
            server.kill()
        await until_gone(pid)

    asyncio.run(story())


async def _suspended(server: TestServer, notebook: Notebook) -> bool:
    return (await server.do(notebook, "reclaim", {"wait": True}))["state"] == "done"


async def _known(server: TestServer, notebook: Notebook) -> dict[str, object] | None:
    model = await server.kernel(notebook)
    return model if model["lease"] is not None and model["suspended_bytes"] else None


async def _restarted(tab: Notebook) -> bool:
    return any(
        m["msg_type"] == "status" and m["content"]["execution_state"] == "restarting"
        for m in tab.others
    )
