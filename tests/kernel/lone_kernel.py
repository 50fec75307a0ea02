"""A kernel with the agent and without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from jupyter_gpu_predict.kernel.boot import boot_code


class Kernel:
    """A kernel with the agent and without a server."""

    def __init__(
        self, folder: Path, environ: dict[str, str] | None = None, **settings: Any
    ) -> None:
        self.manager = KernelManager()
        more = {} if environ is None else {"env": environ}
        self.manager.start_kernel(cwd=str(folder), **more)
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

    def ask(self, msg_type: str, **content: Any) -> dict[str, Any]:
        """Send a request on control, as the server does, and return the answer."""
        message = self.client.session.msg(msg_type, {"version": 1, **content})
        self.client.control_channel.send(message)
        while True:
            reply = self.client.get_control_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                return dict(reply["content"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()
