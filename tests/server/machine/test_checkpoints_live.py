"""Rung 2 in a live server: real kernels with torch, suspended by a driver that is emulated."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import NoCompilerError
from emulators.machine import EmulatedMachine
from emulators.machine.machine import NAME
from live_server import SERVER_OPTIONS, Run, TestServer, running, started, until

from jupyter_gpu_predict.core.migration.cost import Bandwidths
from jupyter_gpu_predict.core.model import MIB
from jupyter_gpu_predict.demo.client import API, Notebook
from jupyter_gpu_predict.devices.cuda_checkpoint_proof import FILE, Proof, ProofFile
from jupyter_gpu_predict.store.trace_store import Store

pytestmark = [pytest.mark.timeout(600)]

HOLD = """
import time, torch
x = torch.arange(100 << 18, dtype=torch.int32).to("emu")
total = int(x.cpu().sum())
"""
"""100 MiB."""

CHECK = "print(int(x.cpu().sum()) == total)"

OPTIONS = {
    "GpuPredict.preempt": True,
    "GpuPredict.preempt_min_s": 1.0,
    "GpuPredict.grace_period_s": 1.0,
    "GpuPredict.prebind": False,
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    try:
        made = EmulatedMachine(tmp_path_factory.mktemp("machine"))
    except NoCompilerError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def prepare(folder: Path, machine: EmulatedMachine) -> TestServer:
    """Return a server whose driver is proven, where taking memory in place is slow."""
    data = folder / "data" / "gpu-predict"
    ProofFile(data / FILE).write(
        Proof("580.95.05", "libcuda", (NAME,), True, True, (NAME,), 0.1, 0.1, 0.0)
    )
    with Store(f"sqlite:///{data / 'state.db'}") as store:
        slow = Bandwidths(1e6, 1e6, 1e6, measured=("suspend", "restore", "capture"))
        store.save_bandwidths(platform.node(), slow.to_json())
    spec = folder / "data" / "kernels" / "foreign"
    spec.mkdir(parents=True)
    # A kernel that the server takes for another language's gets no agent. Like those it does not
    # end with its server.
    lasting = "import os; del os.environ['JPY_PARENT_PID']; from ipykernel.kernelapp import main"
    argv = [sys.executable, "-c", f"{lasting}; main()", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Foreign", "language": "R"})
    )
    return on(machine, folder)


def on(machine: EmulatedMachine, folder: Path) -> TestServer:
    options = {**SERVER_OPTIONS, **machine.OPTIONS, **OPTIONS}
    return TestServer(folder, options=options, env=machine.variables)


@pytest.fixture(scope="module")
def server(server_folder: Path, machine: EmulatedMachine, run: Run[Any]) -> Iterator[TestServer]:
    process = prepare(server_folder, machine)
    with running(process, run):
        run(one_gpu(process, machine))
        yield process


async def one_gpu(server: TestServer, machine: EmulatedMachine) -> None:
    """Leave one GPU to all kernels."""

    async def known() -> bool:
        return len((await server.get(f"{API}/gpus"))["gpus"]) == len(machine.uuids)

    await until(known)
    await server.post(f"{API}/gpus/{machine.uuids[1]}/cordon")


async def checkpointed(server: TestServer, notebook: Notebook) -> dict[str, Any]:
    async def is_so() -> dict[str, Any] | None:
        model = await server.kernel(notebook)
        return model if model["checkpointed"] else None

    found: dict[str, Any] = await until(is_so)
    return found


async def say(notebook: Notebook, code: str) -> str:
    execution = await notebook.run(code)
    assert execution.status == "ok", execution.text
    return execution.text.strip()


def test_a_kernel_without_agent_gives_way_and_comes_back_when_it_is_at_work(
    server: TestServer, machine: EmulatedMachine, run: Run[Any]
) -> None:
    async def story() -> None:
        foreign = await server.open("foreign.ipynb", "foreign")
        await say(foreign, HOLD)

        async def seen() -> bool:
            model = await server.kernel(foreign)
            return not model["agent"] and model["used_bytes"] == 100 * MIB

        await until(seen)
        asks = await server.opened("asks.ipynb", "import torch")
        claimed = await server.do(asks, "claim", {"bytes": 200 * MIB})
        assert claimed["state"] == "done", claimed
        model = await checkpointed(server, foreign)
        assert machine.used() == 0
        assert (model["state"], model["suspended_bytes"]) == ("suspended", 100 * MIB)
        assert "driver checkpoint" in model["last_decision"]["reason"]
        assert "it has no agent" in model["last_decision"]["reason"]
        await say(asks, "y = torch.zeros(190 << 18, device='emu')")
        # Its memory comes back as soon as it wants to work, and that of the other one goes.
        assert await say(foreign, CHECK) == "True"
        model = await server.kernel(foreign)
        assert (model["state"], model["checkpointed"]) == ("bound", False)
        assert (await checkpointed(server, asks))["suspended_bytes"] == 190 * MIB
        assert await say(asks, "print(float(y.sum().cpu()))") == "0.0"
        for notebook in (foreign, asks):
            await server.end(notebook)
        await until(lambda: _empty(machine))

    run(story())


async def _empty(machine: EmulatedMachine) -> bool:
    return machine.used() == 0


def test_with_the_agent_it_is_the_cheaper_rung_and_nobody_notices(
    server: TestServer, machine: EmulatedMachine, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("mine.ipynb", HOLD)
        ended = await server.do(notebook, "reclaim")
        assert ended["state"] == "done", ended
        assert ended["result"]["freed_bytes"] == 100 * MIB
        assert machine.used() == 0
        model = await checkpointed(server, notebook)
        assert "driver checkpoint, " in model["last_decision"]["reason"]
        # What would read its memory is refused with the way out.
        path = f"{API}/kernels/{notebook.kernel_id}/snapshot"
        status, refused = await server.request("POST", path, {})
        assert (status, refused["reason"]) == (409, "conflict")
        assert "bind it first" in refused["message"]
        assert (await server.do(notebook, "bind"))["state"] == "done"
        assert machine.used() == 100 * MIB
        assert (await server.do(notebook, "reclaim"))["state"] == "done"
        assert await say(notebook, CHECK) == "True"
        assert "driver checkpoint" in await say(notebook, "%gpu why")
        await server.end(notebook)

    run(story())


TOUCH_WHEN_ASKED = """
import asyncio, os
def poll():
    if os.path.exists({asked!r}):
        open({begun!r}, "w").close()
        seen = int(x.cpu().sum()) == total
    else:
        asyncio.get_event_loop().call_later(0.05, poll)
asyncio.get_event_loop().call_soon(poll)
"""


def test_a_kernel_that_a_callback_has_stuck_in_the_gpu_comes_back_for_its_next_cell(
    server: TestServer, machine: EmulatedMachine, tmp_path: Path, run: Run[Any]
) -> None:
    """Its main thread does not return from the call, so that it neither claims nor says a thing."""
    asked, begun = tmp_path / "asked", tmp_path / "begun"

    async def story() -> None:
        notebook = await server.opened("stuck.ipynb", HOLD)
        await say(notebook, TOUCH_WHEN_ASKED.format(asked=str(asked), begun=str(begun)))

        async def reclaimed() -> bool:
            # A reply goes out shortly before its handler is over.
            return bool((await server.do(notebook, "reclaim"))["state"] == "done")

        await until(reclaimed)
        await checkpointed(server, notebook)
        assert machine.used() == 0
        asked.touch()

        async def touches() -> bool:
            return begun.exists()

        await until(touches)
        assert await say(notebook, "print(seen if 'seen' in globals() else 'here')") == "here"
        assert await say(notebook, CHECK) == "True"
        await server.end(notebook)

    run(story())


LONG = """
steps = torch.zeros(1024, device="emu")
for step in range(400):
    steps += 1
    time.sleep(0.02)
print(int(x.cpu().sum()) == total, bool((steps.cpu() == 400).all()))
"""


SHORT = """
%gpu need 200MiB
import torch, time
z = torch.ones(190 << 18, device="emu")
print("running", flush=True)
"""


async def halted(server: TestServer, machine: EmulatedMachine) -> tuple[Notebook, Any, Notebook]:
    """Let a long cell be halted by one that needs most of the GPU, which then sleeps a while."""
    long = await server.opened("long.ipynb", HOLD)
    cell = await started(long, LONG)
    short = await server.opened("short.ipynb", "1")
    sleeps = await short.start(SHORT + "time.sleep(5)")
    await until(lambda: _runs(sleeps))
    model = await server.kernel(long)
    assert model["checkpointed"]
    assert model["preempted_s"] is not None
    assert model["busy"]
    assert machine.used() == 190 * MIB
    return long, cell, short


async def _runs(execution: Any) -> bool:
    return "running" in execution.text


def test_a_cell_is_halted_in_its_middle_and_goes_on(
    server: TestServer, machine: EmulatedMachine, run: Run[Any]
) -> None:
    async def story() -> None:
        long, cell, short = await halted(server, machine)

        async def claims() -> Any:
            return (await server.kernel(long))["waiting"]

        (waits,) = await until(claims)
        assert (waits["origin"], waits["deadline_s"]) == ("preempted", None)
        json.dumps(await server.get(f"{API}/plan"), allow_nan=False)
        await long.finish(cell)
        assert cell.text.strip().endswith("True True"), cell.text
        model = await server.kernel(long)
        assert (model["checkpointed"], model["preempted_s"]) == (False, None)
        for notebook in (long, short):
            await server.end(notebook)

    run(story())


def test_a_kernel_moves_by_the_drivers_map_where_that_is_cheaper(
    server: TestServer, machine: EmulatedMachine, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("moves.ipynb", HOLD)
        pid = (await server.kernel(notebook))["pid"]
        await server.post(f"{API}/gpus/{machine.uuids[1]}/uncordon")
        ended = await server.do(notebook, "migrate", {"gpu": machine.uuids[1]})
        assert ended["state"] == "done", ended
        moved = ended["result"]
        assert (moved["rung"], moved["gpu_uuid"]) == ("driver_checkpoint", machine.uuids[1])
        assert (machine.used(0), machine.used(1)) == (0, 100 * MIB)
        assert await say(notebook, CHECK) == "True"
        model = await server.kernel(notebook)
        assert (model["pid"], model["lease"]["gpu_uuid"]) == (pid, machine.uuids[1])
        await server.end(notebook)
        await server.post(f"{API}/gpus/{machine.uuids[1]}/cordon")

    run(story())


def test_a_killed_servers_halted_kernels_are_taken_over_and_go_on(
    machine: EmulatedMachine, tmp_path: Path, run: Run[Any]
) -> None:
    async def story(first: TestServer) -> None:
        long, _, short = await halted(first, machine)
        for notebook in (long, short):
            await notebook.close()
        first.kill()
        second = on(machine, tmp_path)
        second.start()
        try:
            await second.ready()
            await one_gpu(second, machine)

            async def goes_on() -> bool:
                path = f"{API}/kernels/{long.kernel_id}"
                status, model = await second.request("GET", path)
                return bool(status == 200 and not model["checkpointed"] and not model["busy"])

            await until(goes_on, 120.0)
            again = Notebook(second, long.kernel_id)
            await again.connect()
            done = "print(step, int(x.cpu().sum()) == total, bool((steps.cpu() == 400).all()))"
            assert await say(again, done) == "399 True True"
            await again.close()
        finally:
            await second.stop()
            second.end_left()

    first = prepare(tmp_path, machine)
    first.start()
    try:
        run(asyncio.wait_for(_ready_then(first, machine, story), 400))
    finally:
        first.kill()
        first.end_left()


def test_a_kernel_without_agent_that_the_driver_has_outlives_its_server(
    machine: EmulatedMachine, tmp_path: Path, run: Run[Any]
) -> None:
    async def story(first: TestServer) -> None:
        foreign = await first.open("foreign.ipynb", "foreign")
        await say(foreign, HOLD)

        async def seen() -> bool:
            return bool((await first.kernel(foreign))["used_bytes"] == 100 * MIB)

        await until(seen)
        asks = await first.opened("asks.ipynb", "import torch")
        claimed = await first.do(asks, "claim", {"bytes": 200 * MIB})
        assert claimed["state"] == "done", claimed
        await checkpointed(first, foreign)
        for notebook in (foreign, asks):
            await notebook.close()
        first.kill()
        second = on(machine, tmp_path)
        second.start()
        try:
            await second.ready()
            await one_gpu(second, machine)

            async def taken_over() -> bool:
                path = f"{API}/kernels/{foreign.kernel_id}"
                return (await second.request("GET", path))[0] == 200

            await until(taken_over)
            again = Notebook(second, foreign.kernel_id)
            await again.connect()
            assert await say(again, CHECK) == "True"
            await again.close()
        finally:
            await second.stop()
            second.end_left()

    first = prepare(tmp_path, machine)
    first.start()
    try:
        run(asyncio.wait_for(_ready_then(first, machine, story), 400))
    finally:
        first.kill()
        first.end_left()


async def _ready_then(server: TestServer, machine: EmulatedMachine, story: Any) -> None:
    await server.ready()
    await one_gpu(server, machine)
    await story(server)
