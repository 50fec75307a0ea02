"""A cell that needs memory which is not there waits, and ends clearly when it gets none."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel_bench import Bench, until
from live_server import SERVER_OPTIONS, Run, TestServer, running

from jupyter_gpu_predict.demo.client import API, Execution, Notebook

FILL = "%gpu need 100MiB\nimport torch; held = torch.ones(100 << 20, dtype=torch.uint8)"
CELLS = {
    "sync": "%gpu need 60MiB\nran = 1\nprint('done')",
    "async": "%gpu need 60MiB\nimport asyncio\nawait asyncio.sleep(0)\nran = 1\nprint('done')",
    "magic": "%%time\n%gpu need 60MiB\nran = 1",
    "own": "%%gpu need 60MiB\nran = 1\nprint('done')",
}


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    return {"GpuPredict.simulated_memory": "128MiB"}


async def fill(bench: Bench) -> list[Notebook]:
    """Fill both GPUs by kernels whose memory must not be taken."""
    kernels = await asyncio.gather(bench.server.open(), bench.server.open())
    for kernel in kernels:
        await bench.server.post(f"{API}/kernels/{kernel.kernel_id}/pin")
    await asyncio.gather(*(bench.say(kernel, FILL) for kernel in kernels))
    held = [
        await bench.until_model(kernel, lambda m: m["lease"]["bytes"] >= 100 << 20)
        for kernel in kernels
    ]
    # Opened at once, they were still given a GPU each.
    assert {m["lease"]["gpu_uuid"] for m in held} == {"SIM-GPU-0", "SIM-GPU-1"}
    return list(kernels)


@pytest.fixture(scope="module")
def full(bench: Bench, run: Run[Any]) -> Iterator[list[Notebook]]:
    kernels = run(fill(bench))
    yield kernels
    run(bench.close(*kernels))


@pytest.fixture(scope="module")
def waiter(bench: Bench, full: list[Notebook], run: Run[Any]) -> Iterator[Notebook]:
    notebook = run(bench.server.open())
    yield notebook
    run(bench.close(notebook))


async def until_waits(bench: Bench, notebook: Notebook) -> None:
    await bench.until_model(notebook, lambda m: m["waiting"])


async def until_shown(notebook: Notebook, execution: Execution) -> str:
    for _ in range(1200):
        for message in execution.messages:
            if message["msg_type"] in {"display_data", "update_display_data"}:
                return str(message["content"]["data"]["text/plain"])
        await asyncio.sleep(0.05)
    raise AssertionError([m["msg_type"] for m in execution.messages])


def refusal(execution: Execution) -> str:
    """Return the one clear error that a cell which did not run ends with."""
    assert execution.status == "error"
    assert execution.reply is not None
    assert execution.reply["ename"] == "GpuRefused"
    (output,) = execution.outputs
    assert output["output_type"] == "error"
    assert output["ename"] == "GpuRefused"
    assert output["traceback"] == [f"GpuRefused: {output['evalue']}"]
    return str(output["evalue"])


async def assert_did_not_run(bench: Bench, notebook: Notebook) -> None:
    assert await bench.say(notebook, "print('ran' in globals())") == "False\n"


@pytest.mark.parametrize("kind", CELLS)
def test_an_interrupt_cancels_the_wait_and_the_cell_does_not_run(
    bench: Bench, waiter: Notebook, run: Run[Any], kind: str
) -> None:
    async def scenario() -> None:
        waiting = await waiter.start(CELLS[kind])
        behind = [await waiter.start("ran = 2"), await waiter.start("ran = 3")]
        await until_waits(bench, waiter)
        shown = await until_shown(waiter, waiting)
        assert "place 1 in the queue" in shown
        assert "60 MiB" in shown
        assert not waiting.idle
        await bench.server.post(f"api/kernels/{waiter.kernel_id}/interrupt")
        await waiter.finish(waiting)
        assert "interrupted" in refusal(waiting)
        assert [(await waiter.finish(e)).status for e in behind] == ["aborted", "aborted"]
        await bench.until_model(waiter, lambda m: not m["waiting"])
        await assert_did_not_run(bench, waiter)

    run(scenario())


def test_an_interrupt_request_on_control_cancels_a_silent_wait(
    bench: Bench, waiter: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        waiting = await waiter.start(CELLS["sync"], silent=True, store_history=False)
        await until_waits(bench, waiter)
        interrupt = await waiter.send("interrupt_request", {}, channel="control")
        await asyncio.wait_for(waiting.done.wait(), 60)
        assert waiting.status == "error"
        assert waiting.reply is not None
        assert waiting.reply["ename"] == "GpuRefused"
        assert "interrupted" in waiting.reply["evalue"]
        assert (await waiter.finish(interrupt)).status == "ok"
        await assert_did_not_run(bench, waiter)

    run(scenario())


def test_user_expressions_of_a_cell_without_code_do_not_wait_for_memory(
    bench: Bench, waiter: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        done = await waiter.run("", silent=True, user_expressions={"two": "1 + 1"})
        assert done.reply is not None
        assert done.reply["user_expressions"]["two"]["data"]["text/plain"] == "2"

    run(scenario())


@pytest.mark.parametrize("code", ["%gpu need 60MiB\nran = = 1", "%gpu need 60\nran = 1"])
def test_what_cannot_run_does_not_wait(
    bench: Bench, waiter: Notebook, run: Run[Any], code: str
) -> None:
    async def scenario() -> None:
        done = await waiter.run(code)
        assert done.reply is not None
        assert done.reply["ename"] in {"SyntaxError", "UsageError"}
        await assert_did_not_run(bench, waiter)

    run(scenario())


def test_more_than_any_gpu_has_is_refused_at_once(
    bench: Bench, waiter: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        why = refusal(await waiter.run("%gpu need 200MiB\nran = 1"))
        assert "200 MiB" in why
        assert "128 MiB" in why
        await assert_did_not_run(bench, waiter)

    run(scenario())


def test_a_kernel_killed_while_it_waits_leaves_no_claim(
    bench: Bench, full: list[Notebook], run: Run[Any]
) -> None:
    async def scenario() -> None:
        doomed = await bench.server.open()
        await doomed.start(CELLS["sync"])
        model = await bench.until_model(doomed, lambda m: m["waiting"])
        os.kill(model["pid"], signal.SIGKILL)

        async def forgotten() -> bool:
            view = (await bench.server.get(f"{API}/plan"))["view"]
            return all(c["kernel_id"] != doomed.kernel_id for c in view["claims"])

        await until(forgotten)
        await bench.until_model(doomed, lambda m: m["agent"] and not m["waiting"])
        await bench.close(doomed)

    run(scenario())


def test_a_grant_lets_the_cell_run_as_if_it_had_not_waited(
    bench: Bench, full: list[Notebook], waiter: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        waiting = await waiter.start(CELLS["own"])
        await until_shown(waiter, waiting)
        await bench.server.post(f"{API}/kernels/{full[0].kernel_id}/unpin")
        await waiter.finish(waiting)
        assert waiting.status == "ok"
        assert waiting.outputs == [{"output_type": "stream", "name": "stdout", "text": "done\n"}]
        model = await bench.model(waiter)
        assert model["lease"]["bytes"] >= 60 << 20
        victim = await bench.model(full[0])
        assert victim["suspended_bytes"] >= 100 << 20
        # What was taken from the other kernel comes back when that kernel needs it.
        await bench.do(waiter, "reclaim")
        assert await bench.say(full[0], "print(int(held.sum()))") == f"{100 << 20}\n"

    run(scenario())


@pytest.fixture
def hasty(tmp_path: Path, run: Run[Any]) -> Iterator[TestServer]:
    """A server on which cells wait 2 s only."""
    options = {**SERVER_OPTIONS, "GpuPredict.simulated_gpus": 1, "GpuPredict.claim_deadline_s": 2}
    with running(TestServer(tmp_path, options=options), run) as process:
        yield process


def test_past_its_deadline_a_cell_fails_before_it_runs(hasty: TestServer, run: Run[Any]) -> None:
    async def scenario() -> None:
        bench, waiter = Bench(hasty), await hasty.open()
        await bench.say(waiter, "1")
        await hasty.post(f"{API}/gpus/SIM-GPU-0/cordon")
        for kind in ("async", "own"):
            waiting = await waiter.start(CELLS[kind])
            behind = await waiter.start("ran = 2")
            await waiter.finish(waiting)
            # Kernel and server both watch the deadline; the server says how long was waited.
            assert re.search(r"60(\.0)? MiB .*(within 2|in \d+) s", refusal(waiting))
            assert (await waiter.finish(behind)).status == "aborted"
            await assert_did_not_run(bench, waiter)
        silent = await waiter.run(CELLS["sync"], silent=True)
        assert silent.reply is not None
        assert silent.reply["ename"] == "GpuRefused"
        assert [m["msg_type"] for m in silent.messages] == ["status", "error", "status"]
        await assert_did_not_run(bench, waiter)

    run(scenario())
