"""Whatever a cell does, the agent stays, and what cannot be taken back safely is left and named."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from kernel_bench import Bench, until
from live_server import Run

from jupyter_gpu_predict.demo.client import API, Notebook

MIB = 1 << 20
HOLD = "import torch; t = torch.ones(8 << 20, dtype=torch.uint8)"
TOTAL = "print(int(t.sum()))"


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    return {
        "GpuPredict.prebind": False,
        "ZMQChannelsWebsocketConnection.iopub_data_rate_limit": 1e12,
    }


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    """A kernel that holds 8 MiB; what each test leaves behind is the next one's beginning."""
    opened = run(bench.server.open())
    run(bench.say(opened, HOLD))
    yield opened
    run(bench.close(opened))


async def assert_goes_on(bench: Bench, notebook: Notebook) -> None:
    """The agent answers, takes the memory and brings it back."""
    assert "bound on SIM-GPU-" in await bench.say(notebook, "%gpu")
    suspended = await bench.suspend(notebook)
    assert suspended["suspended_bytes"] >= 8 * MIB
    assert await bench.say(notebook, TOTAL) == f"{8 * MIB}\n"
    await bench.until_model(notebook, lambda m: m["suspended_bytes"] == 0)


def test_a_cell_that_raises(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        assert (await notebook.run("1 / 0")).status == "error"
        assert (await notebook.run("raise SystemExit")).status == "error"
        assert (await notebook.run("raise BaseException('all')")).status == "error"
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_an_endless_loop_that_is_interrupted(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        running = await notebook.start("while True: pass")
        await bench.until_model(notebook, lambda m: m["busy"])
        operation = await bench.do(notebook, "reclaim")
        assert operation["state"] == "failed"
        assert "is running a cell" in operation["error"]
        await bench.server.post(f"api/kernels/{notebook.kernel_id}/interrupt")
        await notebook.finish(running)
        assert running.reply is not None
        assert running.reply["ename"] == "KeyboardInterrupt"

        async def recorded() -> bool:
            trace = await bench.server.get(f"{API}/kernels/{notebook.kernel_id}/trace")
            return "interrupted" in {r["outcome"] for r in trace[-3:]}

        await until(recorded)
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_a_hundred_megabytes_of_output(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        done = await notebook.run("print('x' * 100_000_000)")
        assert done.status == "ok"
        assert len(done.text) == 100_000_001, done.text[:300]
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_a_fork_in_a_cell(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    code = """
import multiprocessing as mp, os
pid = os.fork()
if pid == 0:
    os._exit(int(t[0]) != 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
with mp.get_context("fork").Pool(1) as pool:
    print(pool.map(abs, [-1]))
"""

    async def scenario() -> None:
        assert await bench.say(notebook, code) == "0\n[1]\n"
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_what_is_at_work_in_the_memory_is_left_and_named(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    thread = """
import threading
stop = threading.Event()
def spin():
    while not stop.wait(0.01): t.sum()
threading.Thread(target=spin, name="spinner", daemon=True).start()
"""
    task = """
import asyncio
async def poll():
    while True: await asyncio.sleep(0.01)
polling = asyncio.ensure_future(poll())
polling.set_name("poller")
"""

    async def assert_refused(name: str) -> None:
        operation = await bench.do(notebook, "reclaim", wait=True)
        assert operation["state"] == "failed"
        assert operation["code"] == "refused"
        assert name in operation["error"]
        model = await bench.model(notebook)
        assert name in model["keep_reason"]
        assert model["suspended_bytes"] == 0
        assert await bench.say(notebook, TOTAL) == f"{8 * MIB}\n"

    async def scenario() -> None:
        await bench.say(notebook, thread)
        await assert_refused("spinner")
        await bench.say(notebook, f"stop.set()\n{task}")
        await assert_refused("poller")
        await bench.say(notebook, "polling.cancel()")
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_an_exported_tensor_is_left_and_named(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    code = """
import numpy as np
given = torch.ones(4 << 20, dtype=torch.uint8)
other = np.from_dlpack(given)
"""

    async def scenario() -> None:
        await bench.say(notebook, code)
        result = await bench.suspend(notebook)
        assert result["used_bytes"] >= 4 * MIB
        assert 8 * MIB <= result["suspended_bytes"] < 12 * MIB
        assert result["kept"], result
        assert any("given" in str(k) or "DLPack" in str(k) for k in result["kept"]), result["kept"]
        code_after = "other[0] = 5; print(int(given[0]), int(t.sum()))"
        assert await bench.say(notebook, code_after) == f"5 {8 * MIB}\n"
        await bench.say(notebook, "del given, other")

    run(scenario())


def test_a_cell_that_deletes_torch(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    code = "import sys\nfor name in [n for n in sys.modules if n.split('.')[0] == 'torch']:\n"
    code += "    del sys.modules[name]\ndel torch"

    async def scenario() -> None:
        await bench.say(notebook, code)
        await assert_goes_on(bench, notebook)

    run(scenario())


def test_a_killed_kernel_frees_its_lease_and_comes_back_with_an_agent(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def gone(pid: int) -> bool:
        path = f"{API}/kernels/{notebook.kernel_id}"
        status, model = await bench.server.request("GET", path)
        return status == 404 or model["pid"] != pid

    async def scenario() -> None:
        other = await bench.server.open()
        await bench.say(other, "x = 1")
        await bench.say(notebook, "%gpu need 400MiB")
        before = await bench.model(notebook)
        assert before["lease"]["bytes"] >= 400 * MIB
        os.kill(before["pid"], signal.SIGKILL)
        await until(lambda: gone(before["pid"]))
        again = await bench.until_model(notebook, lambda m: m["agent"])
        assert again["pid"] != before["pid"]
        assert again["lease"]["bytes"] == 0
        history = await bench.server.get(f"{API}/gpus")
        held = sum(g["held_bytes"] for g in history["gpus"])
        assert held == 0
        assert await bench.say(other, "print(x)") == "1\n"
        assert "bound on SIM-GPU-" in await bench.say(notebook, "%gpu")
        assert await bench.say(notebook, "print('t' in globals())") == "False\n"
        await bench.close(other)

    run(scenario())


def test_a_restart_by_the_user_gives_the_new_process_an_agent(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        before = await bench.model(notebook)
        await bench.server.post(f"api/kernels/{notebook.kernel_id}/restart")
        again = await bench.until_model(
            notebook, lambda m: m["agent"] and m["pid"] != before["pid"]
        )
        assert again["state"] == "bound"
        assert "bound on SIM-GPU-" in await bench.say(notebook, "%gpu")

    run(scenario())


def test_a_cell_sent_while_the_kernel_starts_is_not_lost(bench: Bench, run: Run[Any]) -> None:
    async def scenario() -> None:
        fresh = await bench.server.open()
        first = await asyncio.gather(*(fresh.start(f"print({i})") for i in range(5)))
        texts = [(await fresh.finish(e)).text for e in first]
        assert texts == [f"{i}\n" for i in range(5)]
        await bench.close(fresh)

    run(scenario())
