"""Kernels of another environment, however they are started, get the agent."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from kernel_bench import Bench
from live_server import SERVER_OPTIONS, Run, TestServer, running
from packaging.requirements import Requirement

from jupyter_gpu_predict.demo.client import API, Notebook

PYTHON_KERNELS = ("plain", "wrapped", "emptied", "isolated")

VALUES = """
import types
x = [1, 2]; y = x; text = "a"
f = lambda q: q + 1
def g(): return x
class C: v = 3
c = C()
view = types.MappingProxyType({"k": 1})
"""
SHOW = "print(x, y is x, text, f(1), g() is x, c.v, dict(view))"
SHOWN = "[1, 2] True a 2 True 3 {'k': 1}\n"


def required(name: str, found: set[str]) -> set[str]:
    """Return the distributions that `name` needs, itself among them."""
    if name not in found:
        found.add(name)
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                required(requirement.name, found)
    return found


def environment_with(name: str, folder: Path) -> Path:
    """Make an environment that holds a distribution and what it needs; return its Python."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    for needed in required(name, set()):
        found = distribution(needed)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(found.locate_file(top))))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def server(server_folder: Path, run: Run[Any]) -> Iterator[TestServer]:
    python = str(environment_with("ipykernel", server_folder / "elsewhere"))
    launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specs = {
        "plain": [python, *launch],
        "wrapped": ["sh", "-c", 'exec "$0" "$@"', python, *launch],
        "emptied": ["env", "-i", f"PATH={os.environ['PATH']}", python, *launch],
        "isolated": [python, "-I", *launch],
        "other": [python, *launch],
    }
    for name, command in specs.items():
        folder = server_folder / "data" / "kernels" / name
        folder.mkdir(parents=True)
        language = "bash" if name == "other" else "python"
        model = {"argv": command, "display_name": name, "language": language}
        (folder / "kernel.json").write_text(json.dumps(model))
    with running(TestServer(server_folder, options=SERVER_OPTIONS), run) as process:
        yield process


@pytest.fixture(scope="module")
def kernels(server: TestServer, run: Run[Any]) -> dict[str, Notebook]:
    async def open_all() -> dict[str, Notebook]:
        names = [*PYTHON_KERNELS, "other"]
        return dict(
            zip(names, await asyncio.gather(*(server.open(name=n) for n in names)), strict=True)
        )

    opened: dict[str, Notebook] = run(open_all())
    return opened


@pytest.mark.parametrize("name", PYTHON_KERNELS)
def test_the_agent_is_there_and_leaves_no_trace(
    bench: Bench, kernels: dict[str, Notebook], run: Run[Any], name: str
) -> None:
    kernel = kernels[name]

    async def scenario() -> None:
        prefix = await bench.say(
            kernel, "import sys; print(sys.prefix, sys.prefix in sys.path[-1])"
        )
        assert "elsewhere True" in prefix
        assert sys.prefix not in prefix
        model = await bench.model(kernel)
        assert model["agent"]
        assert model["state"] == "bound"
        assert "bound on SIM-GPU-" in await bench.say(kernel, "%gpu")
        lines = (
            "import subprocess",
            "code = 'import jupyter_gpu_predict'",
            "print(subprocess.run([sys.executable, '-c', code], capture_output=True).returncode)",
        )
        assert await bench.say(kernel, "\n".join(lines)) == "1\n"

    run(scenario())


@pytest.mark.parametrize("name", PYTHON_KERNELS)
def test_a_snapshot_needs_nothing_of_that_environment(
    bench: Bench, kernels: dict[str, Notebook], run: Run[Any], name: str
) -> None:
    kernel = kernels[name]

    async def scenario() -> None:
        await bench.say(kernel, VALUES)
        saved = await bench.do(kernel, "snapshot", name=name)
        assert saved["state"] == "done", saved["error"]
        status = {v["name"]: v["status"] for v in saved["result"]["variables"]}
        assert {status[v] for v in ("x", "y", "text", "f", "g", "C", "c", "view")} == {"saved"}
        await bench.say(kernel, "x.append(3); y = text = f = g = C = c = view = None")
        restored = await bench.do(kernel, "restore", snapshot=name)
        assert restored["state"] == "done", restored["error"]
        assert await bench.say(kernel, SHOW) == SHOWN
        assert await bench.say(kernel, "print([m for m in sys.modules if 'dill' in m])") == "[]\n"

    run(scenario())


def test_such_a_kernel_moves_to_another_process_too(
    bench: Bench, kernels: dict[str, Notebook], run: Run[Any]
) -> None:
    kernel = kernels["emptied"]

    async def scenario() -> None:
        await bench.say(kernel, VALUES)
        before = await bench.model(kernel)
        moved = await bench.do(kernel, "migrate")
        assert moved["state"] == "done", moved["error"]
        after = await bench.model(kernel)
        assert after["pid"] != before["pid"]
        assert after["lease"]["gpu_uuid"] != before["lease"]["gpu_uuid"]
        assert await bench.say(kernel, SHOW) == SHOWN

    run(scenario())


def test_a_kernel_of_another_language_is_left_alone_and_listed(
    bench: Bench, kernels: dict[str, Notebook], run: Run[Any]
) -> None:
    kernel = kernels["other"]

    async def scenario() -> None:
        code = "import sys; print('jupyter_gpu_predict' in sys.modules)"
        assert await bench.say(kernel, code) == "False\n"
        model = await bench.model(kernel)
        assert not model["agent"]
        assert model["lease"] is None
        assert model["pid"]
        assert model["id"] in [k["id"] for k in await bench.server.get(f"{API}/kernels")]
        path = f"{API}/kernels/{kernel.kernel_id}/snapshot"
        status, answer = await bench.server.request("POST", path, {})
        assert status == 409
        assert "has no agent" in answer["message"]

    run(scenario())
