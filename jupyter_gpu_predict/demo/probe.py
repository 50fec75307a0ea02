"""A throw-away server with one kernel, to see whether what is installed here works end to end."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from jupyter_core.paths import jupyter_config_dir
from tornado.httpclient import HTTPClientError

from ..devices.doctor import Check
from ..errors import GpuPredictError
from ..server import API
from .client import Notebook, ServerProcess

NAME = "agent in a real kernel"


def probe_agent(timeout_s: float = 60.0) -> Check:
    """Start a server with this user's configuration and simulated GPUs, and ask a kernel's agent.

    Data, runtime files and notebooks are in a temporary folder; nothing of the user's is touched.
    """
    with tempfile.TemporaryDirectory(prefix="jupyter-gpu-doctor-") as folder:
        return asyncio.run(_probe(Path(folder), timeout_s))


async def _probe(folder: Path, timeout_s: float) -> Check:
    root = folder / "root"
    root.mkdir()
    began = time.monotonic()
    server = ServerProcess(
        folder,
        root=root,
        options={
            "GpuPredict.device_backend": "simulated",
            "GpuPredict.data_dir": str(folder / "state"),
            "GpuPredict.database_url": "",
            "ServerApp.base_url": "/",
            "ServerApp.certfile": "",
            "ServerApp.keyfile": "",
        },
        env={"JUPYTER_CONFIG_DIR": jupyter_config_dir()},
    )
    server.start()
    notebook: Notebook | None = None
    try:
        await server.ready(timeout_s)
        status, _ = await server.request("GET", f"{API}/gpus")
        if status == 404:
            return Check(
                NAME,
                False,
                "A server came up without the extension.",
                "jupyter server extension enable jupyter_gpu_predict, and see `jupyter server "
                "extension list`",
            )
        notebook = await server.open()
        answer = await notebook.run("%gpu", timeout_s)
        model = await server.get(f"{API}/kernels/{notebook.kernel_id}")
        seconds = time.monotonic() - began
    except (GpuPredictError, OSError, HTTPClientError) as error:
        return Check(NAME, False, _sentence(error), "Start `jupyter server` and read its log.")
    finally:
        if notebook is not None:
            await notebook.close()
        await server.stop()
    if not model["agent"]:
        return Check(
            NAME,
            False,
            "A kernel started, but without the agent.",
            "Update ipykernel in the kernel's environment (>= 7); the server's log names the cause",
        )
    if answer.status != "ok":
        return Check(NAME, False, f"%gpu failed: {answer.text.strip()}", "Restart the kernel.")
    return Check(NAME, True, f"A kernel's agent and %gpu answered, {seconds:.1f} s in all.")


def _sentence(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[0], lines[-1])) if len(lines) > 1 else str(error)
