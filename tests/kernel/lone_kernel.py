"""A kernel with the agent and without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from jupyter_gpu_predict.kernel.boot import boot_code


class Kernel:
    """A kernel with the agent and without a server."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(folder))
        self.client: BlockingKernelClient = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        config = {
            "kernel_id": "k", "device": "simulated", "gpu_uuid": None, "simulated": True,
            "lease_bytes": 0, "epoch": 0, "spill_dir": str(folder), "snapshot_folder": str(folder),
            "key_path": str(folder / "key"), "dill_dir": "",
            **settings,
        }  # fmt: skip
        self.run(boot_code(config), silent=True)

    def run(self, code: str, *, silent: bool = False) -> str:
        shown: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                shown.append(message["content"]["text"])
            elif message["msg_type"] == "error":
                shown.append("\n".join(message["content"]["traceback"]))

        reply = self.client.execute_interactive(
            code, silent=silent, output_hook=hook, timeout=60, allow_stdin=False
        )
        assert reply["content"]["status"] == "ok", "".join(shown)
        return "".join(shown)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
