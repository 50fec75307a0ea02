"""The same notebook on a plain kernel, and the digest of every variable."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager

from ..errors import KernelLinkError

DIGESTS = (
    "__import__('json').dumps(__import__('jupyter_gpu_predict.snapshots.digest', fromlist=['_'])"
    ".digests({n: get_ipython().user_ns[n] for n in __import__('jupyter_gpu_predict.kernel.state', "
    "fromlist=['_']).user_names(get_ipython())}))"
)
"""Evaluated as a user expression, so that it leaves nothing in the namespace it looks at."""

CELL_TIMEOUT_S = 120.0


@dataclass
class Notebook:
    """The code cells of a notebook file."""

    path: Path
    cells: list[str]

    @classmethod
    def read(cls, path: Path) -> Notebook:
        """Read an .ipynb file."""
        model = json.loads(path.read_text())
        sources = [c["source"] for c in model["cells"] if c["cell_type"] == "code"]
        return cls(path, [s if isinstance(s, str) else "".join(s) for s in sources])


@dataclass
class Outcome:
    """What a run of a notebook left: the outputs of each cell and the digest of each variable."""

    outputs: list[list[dict[str, Any]]] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def parse_digests(reply: dict[str, Any]) -> dict[str, str]:
    """Return the digests in an execute reply.

    Raises
    ------
    KernelLinkError
        If the kernel could not compute them.
    """
    said = reply.get("user_expressions", {}).get("digests", {})
    if said.get("status") != "ok":
        raise KernelLinkError(f"no digests: {said.get('evalue') or reply.get('evalue') or said}")
    digests: dict[str, str] = json.loads(ast.literal_eval(said["data"]["text/plain"]))
    return digests


def output_of(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return an iopub message as an output, if it is one."""
    content = message["content"]
    match message["msg_type"]:
        case "stream":
            return {"output_type": "stream", **content}
        case "execute_result" | "display_data" as kind:
            return {"output_type": kind, **{k: v for k, v in content.items() if k != "transient"}}
        case "error":
            return {"output_type": "error", **content}
    return None


async def run_plain(notebook: Notebook) -> Outcome:
    """Run a notebook on a kernel that nobody watches, at a lower priority."""
    manager = AsyncKernelManager(kernel_name="python3")
    await manager.start_kernel(cwd=str(notebook.path.parent))
    client = manager.client()
    client.start_channels()
    outcome = Outcome()
    try:
        await client.wait_for_ready(timeout=60)
        os.setpriority(os.PRIO_PROCESS, manager.provisioner.pid, 5)
        for code in notebook.cells:
            outputs: list[dict[str, Any]] = []

            def keep(message: dict[str, Any], into: list[dict[str, Any]] = outputs) -> None:
                output = output_of(message)
                if output is None:
                    return
                same = into and output["output_type"] == "stream" == into[-1]["output_type"]
                if same and into[-1]["name"] == output["name"]:
                    into[-1]["text"] += output["text"]
                else:
                    into.append(output)

            reply = await client.execute_interactive(
                code, output_hook=keep, timeout=CELL_TIMEOUT_S, allow_stdin=False
            )
            outcome.outputs.append(outputs)
            if reply["content"]["status"] != "ok":
                outcome.failed.append(code)
        reply = await client.execute_interactive(
            "",
            user_expressions={"digests": DIGESTS},
            timeout=CELL_TIMEOUT_S,
            store_history=False,
            allow_stdin=False,
        )
        outcome.digests = parse_digests(reply["content"])
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
    return outcome
