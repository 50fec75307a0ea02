"""A server and real kernels on emulated GPUs: reclaim, return, move and death, by the ledger."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from emulators.machine import EmulatedMachine
from live_server import Run, TestServer, until

from jupyter_gpu_predict.demo.client import API, Notebook

# Whichever test comes first builds the accelerator.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20

TRAINING = """
import torch
torch.set_num_threads(1)
device = torch.accelerator.current_accelerator()
torch.manual_seed(11)
data = torch.rand((20 << 20) // 4 // 256, 256).repeat(6, 1).to(device)
layers = torch.nn.Linear(256, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)
model = torch.nn.Sequential(*layers).to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
first = model[0].weight
def step(i):
    optimizer.zero_grad()
    loss = (model(data[i * 64:(i + 1) * 64]) ** 2).mean()
    loss.backward(); optimizer.step()
    return loss.item()
losses = [step(i) for i in range(5)]
print(device.type, torch.accelerator.device_count())
"""
GO_ON = """
losses += [step(i) for i in range(5, 10)]
print(losses, data.cpu().double().sum().item(),
      [p.detach().cpu().double().sum().item() for p in model.parameters()],
      first is model[0].weight, data.device)
"""
OTHER = """
import torch
other = torch.ones(150 << 20, dtype=torch.uint8, device="emu")
print(other.cpu().sum(dtype=torch.int64).item() == other.numel())
"""


async def nvml_says(server: TestServer) -> dict[str, dict[int, int]]:
    """Return the bytes of each process on each GPU as the server's NVML gives them."""
    gpus = (await server.get(f"{API}/gpus"))["gpus"]
    return {gpu["uuid"]: {pid: size for pid, size in gpu["processes"] if size} for gpu in gpus}


def ledger_says(machine: EmulatedMachine) -> dict[str, dict[int, int]]:
    return {
        uuid: {pid: size for pid, size in machine.devices.holders(i).items() if size}
        for i, uuid in enumerate(machine.uuids)
    }


async def agree(server: TestServer, machine: EmulatedMachine) -> dict[str, dict[int, int]]:
    """Wait until NVML has caught up with the ledger, and return what both say."""

    async def same() -> bool:
        return await nvml_says(server) == ledger_says(machine)

    await until(same)
    found = ledger_says(machine)
    assert all(sum(gpu.values()) <= 256 * MIB for gpu in found.values())
    return found


async def pid_of(server: TestServer, notebook: Notebook) -> int:
    return int((await server.kernel(notebook))["pid"])


async def lease_of(server: TestServer, notebook: Notebook) -> dict[str, Any]:
    return dict((await server.kernel(notebook))["lease"])


async def run_ok(notebook: Notebook, code: str) -> str:
    execution = await notebook.run(code)
    assert execution.status == "ok", execution.text
    return execution.text


@pytest.fixture(scope="module")
def plain(server: TestServer, run: Run[Any]) -> str:
    """What training gives that nobody disturbs."""

    async def story() -> str:
        notebook = await server.opened("plain.ipynb", TRAINING)
        text = await run_ok(notebook, GO_ON)
        await server.end(notebook)
        return text

    return run(story())


@pytest.fixture(scope="module")
def trained(server: TestServer, run: Run[Any], plain: str) -> Notebook:
    async def story() -> Notebook:
        notebook = await server.opened("trained.ipynb")
        assert await run_ok(notebook, TRAINING) == "emu 1\n"
        return notebook

    return run(story())


def test_an_idle_kernel_gives_its_memory_to_one_that_needs_it_and_goes_on_bit_by_bit(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, trained: Notebook, plain: str
) -> None:
    async def story() -> None:
        pid = await pid_of(server, trained)
        gpu = (await lease_of(server, trained))["gpu_uuid"]
        before = await agree(server, machine)
        assert before[gpu][pid] >= 120 * MIB

        # The other GPU is kept full, so that there is nowhere else to go.
        full = await server.opened("full.ipynb", "%gpu pin")
        assert (await lease_of(server, full))["gpu_uuid"] != gpu
        await run_ok(full, OTHER)
        needy = await server.opened("needy.ipynb")
        assert await run_ok(needy, f"%gpu need 200MiB\n{OTHER}") == "True\n"

        assert (await server.kernel(trained))["state"] == "suspended"
        during = await agree(server, machine)
        assert pid not in during[gpu]
        assert during[gpu][await pid_of(server, needy)] >= 150 * MIB
        await server.end(needy)
        await server.end(full)

        assert await run_ok(trained, GO_ON) == plain
        assert (await server.kernel(trained))["state"] == "bound"
        after = await agree(server, machine)
        assert after == {**{uuid: {} for uuid in machine.uuids}, gpu: {pid: before[gpu][pid]}}

    run(story())


def test_it_moves_to_another_gpu_and_is_the_same_there(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, trained: Notebook
) -> None:
    async def story() -> None:
        look = "print(data.cpu().double().sum().item(), losses, step(10), data.device)"
        gpu = (await lease_of(server, trained))["gpu_uuid"]
        target = next(uuid for uuid in machine.uuids if uuid != gpu)
        twin = await server.opened("twin.ipynb", TRAINING)
        await run_ok(twin, GO_ON)
        moved = await server.do(trained, "migrate", {"gpu": target})
        assert moved["state"] == "done", moved
        pid = await pid_of(server, trained)
        found = await agree(server, machine)
        assert found[target][pid] >= 120 * MIB
        assert set(found[gpu]) <= {await pid_of(server, twin)}
        assert await run_ok(trained, look) == await run_ok(twin, look)
        await server.end(twin)

    run(story())


def test_a_kernel_that_dies_gives_its_memory_back(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, trained: Notebook
) -> None:
    async def story() -> None:
        pid = await pid_of(server, trained)
        os.kill(pid, signal.SIGKILL)

        async def free() -> bool:
            return not any((await nvml_says(server)).values())

        await until(free)
        assert not any(ledger_says(machine).values())

        async def restarted() -> bool:
            path = f"{API}/kernels/{trained.kernel_id}"
            status, model = await server.request("GET", path)
            return status == 200 and model["pid"] not in {None, pid}

        await until(restarted)
        assert await run_ok(trained, OTHER) == "True\n"

    run(story())


def test_cells_that_run_at_once_never_hold_more_than_a_gpu_has(
    server: TestServer, run: Run[Any], machine: EmulatedMachine, trained: Notebook
) -> None:
    grow = """
import torch
%gpu need 100MiB
blocks = [torch.full((1 << 20,), i, dtype=torch.uint8, device="emu") for i in range(60)]
blocks = torch.cat(blocks[::2])
print(torch.unique(blocks.cpu()).numel())
"""

    async def story() -> None:
        await server.end(trained)
        notebooks = [await server.opened(f"many{i}.ipynb") for i in range(5)]
        running = [await notebook.start(grow) for notebook in notebooks]
        while not all(execution.done.is_set() for execution in running):
            for gpu in range(2):
                assert machine.used(gpu) <= 256 * MIB
            for execution in running:
                if not execution.done.is_set():
                    await notebooks[0].server.get("api/status")
        for notebook, execution in zip(notebooks, running, strict=True):
            await notebook.finish(execution)
            assert execution.status == "ok", execution.text
            assert execution.text.endswith("30\n")
        await agree(server, machine)

    run(story())
