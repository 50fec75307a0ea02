"""Whatever touches a suspended kernel sees the truth, and what runs code brings its state back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from kernel_bench import Bench, until
from live_server import Run

from jupyter_gpu_predict.demo.client import Execution, Notebook

COUNT = 1 << 20
SETUP = f"""
import torch
from comm import get_comm_manager
t = torch.zeros({COUNT}, dtype=torch.float64)
view = t[:10]
def opened(comm, message):
    t.add_(1)
    comm.on_msg(lambda message: comm.send({{"sum": float(t.add_(1).sum())}}))
get_comm_manager().register_target("probe", opened)
"""
ADD = "print(float(t.add_(1).sum()))"
IMPATIENT = """
import dataclasses
agent = get_ipython().kernel._gpu_predict_agent
patient = agent.config
agent.config = dataclasses.replace(patient, claim_deadline_s=2.0)
agent.gate.deadline_s = 2.0
"""
"""Waits no longer than that for memory: only where there is none, since a machine may be slow."""

PATIENT = "agent.config, agent.gate.deadline_s = patient, patient.claim_deadline_s"


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    # What brings state back in these tests is the message, not a forecast.
    return {
        "GpuPredict.prebind": False,
        "GpuPredict.simulated_gpus": 1,
        "GpuPredict.simulated_memory": "64MiB",
    }


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    opened = run(bench.server.open())
    run(bench.say(opened, SETUP))
    yield opened
    run(bench.close(opened))


async def total(bench: Bench, notebook: Notebook) -> float:
    return float(await bench.say(notebook, "print(float(t.sum()))"))


def printed(execution: Execution) -> float:
    assert execution.status == "ok", execution.text
    return float(execution.text)


def expressed(execution: Execution) -> float:
    assert execution.reply is not None
    return float(execution.reply["user_expressions"]["s"]["data"]["text/plain"])


async def by_cell(notebook: Notebook) -> float:
    return printed(await notebook.run(ADD))


async def by_async_cell(notebook: Notebook) -> float:
    return printed(await notebook.run(f"import asyncio\nawait asyncio.sleep(0)\n{ADD}"))


async def by_silent_cell(notebook: Notebook) -> float:
    await notebook.run("t.add_(1)", silent=True, store_history=False)
    return expressed(await notebook.run("", silent=True, user_expressions={"s": "float(t.sum())"}))


async def by_user_expression(notebook: Notebook) -> float:
    return expressed(
        await notebook.run("", silent=True, user_expressions={"s": "float(t.add_(1).sum())"})
    )


async def by_debugger(notebook: Notebook) -> float:
    done = await notebook.send(
        "debug_request",
        {
            "type": "request",
            "seq": 1,
            "command": "richInspectVariables",
            "arguments": {"variableName": "view"},
        },
        channel="control",
    )
    await notebook.finish(done)
    assert done.reply is not None
    assert done.reply["success"], done.reply
    shown = done.reply["body"]["data"]["text/plain"]
    return (float(shown.partition("[")[2].partition(",")[0]) + 1) * COUNT


async def by_control(notebook: Notebook) -> float:
    content = {
        "code": "t.add_(1)",
        "silent": False,
        "store_history": False,
        "user_expressions": {"s": "float(t.sum())"},
    }
    done = await notebook.send("execute_request", content, channel="control")
    await notebook.finish(done)
    # One busy and one idle, as where nothing had to be brought back first.
    assert [m["msg_type"] for m in done.messages] == ["status", "execute_input", "status"]
    return expressed(done)


async def by_subshell(notebook: Notebook) -> float:
    made = await notebook.finish(
        await notebook.send("create_subshell_request", {}, channel="control")
    )
    assert made.reply is not None
    subshell = made.reply["subshell_id"]
    content = {"code": ADD, "silent": False, "store_history": False, "user_expressions": {}}
    done = await notebook.send("execute_request", content, subshell_id=subshell)
    await notebook.finish(done)
    await notebook.finish(
        await notebook.send("delete_subshell_request", {"subshell_id": subshell}, channel="control")
    )
    return printed(done)


WAYS: dict[str, Callable[[Notebook], Awaitable[float]]] = {
    "cell": by_cell,
    "async cell": by_async_cell,
    "silent cell": by_silent_cell,
    "user expression": by_user_expression,
    "debugger": by_debugger,
    "control": by_control,
    "subshell": by_subshell,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_runs_code_sees_the_truth_and_brings_the_state_back(
    bench: Bench, notebook: Notebook, run: Run[Any], way: str
) -> None:
    async def scenario() -> None:
        before = await total(bench, notebook)
        suspended = await bench.suspend(notebook)
        assert suspended["suspended_bytes"] >= 8 * COUNT
        assert suspended["used_bytes"] == 0
        assert await WAYS[way](notebook) == before + COUNT
        model = await bench.until_model(notebook, lambda m: m["suspended_bytes"] == 0)
        assert model["used_bytes"] >= 8 * COUNT
        if way == "debugger":
            await notebook.run("t.add_(1)")
        assert await total(bench, notebook) == before + COUNT

    run(scenario())


async def comm_sums(notebook: Notebook, comm_id: str, count: int) -> list[float]:
    async def look() -> list[float] | None:
        messages = [m for e in notebook.executions.values() for m in e.messages] + notebook.others
        sums = [
            float(m["content"]["data"]["sum"])
            for m in messages
            if m["msg_type"] == "comm_msg" and m["content"]["comm_id"] == comm_id
        ]
        return sums if len(sums) >= count else None

    found: list[float] = await until(look)
    return found


def test_comms_see_the_truth_and_bring_the_state_back(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        before = await total(bench, notebook)
        await bench.suspend(notebook)
        comm = {"comm_id": "first", "target_name": "probe", "data": {}}
        await notebook.send("comm_open", comm)
        await bench.until_model(notebook, lambda m: m["suspended_bytes"] == 0)
        await bench.suspend(notebook)
        await notebook.send("comm_msg", {"comm_id": "first", "data": {}})
        assert await comm_sums(notebook, "first", 1) == [before + 2 * COUNT]
        await bench.until_model(notebook, lambda m: m["suspended_bytes"] == 0)
        await notebook.send("comm_close", {"comm_id": "first", "data": {}})
        assert await total(bench, notebook) == before + 2 * COUNT

    run(scenario())


def test_tab_and_shift_tab_are_answered_from_the_host_copy(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        before = await total(bench, notebook)
        suspended = (await bench.suspend(notebook))["suspended_bytes"]
        tab = await notebook.finish(
            await notebook.send("complete_request", {"code": "t.su", "cursor_pos": 4})
        )
        assert tab.reply is not None
        assert any(match.endswith("sum") for match in tab.reply["matches"])
        shift_tab = await notebook.finish(
            await notebook.send(
                "inspect_request", {"code": "view", "cursor_pos": 4, "detail_level": 0}
            )
        )
        assert shift_tab.reply is not None
        assert f"[{before / COUNT:.0f}.," in shift_tab.reply["data"]["text/plain"]
        model = await bench.model(notebook)
        assert model["suspended_bytes"] == suspended
        assert model["waiting"] == []
        assert model["state"] == "suspended"
        assert await total(bench, notebook) == before

    run(scenario())


def test_where_there_is_no_room_a_comm_works_on_the_host_copy(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        before = await total(bench, notebook)
        await notebook.send("comm_open", {"comm_id": "full", "target_name": "probe", "data": {}})
        await bench.say(notebook, IMPATIENT)
        suspended = (await bench.suspend(notebook))["suspended_bytes"]
        other = await bench.server.open()
        busy = await other.start("%gpu need 60MiB\nimport time\ntime.sleep(600)")
        await bench.until_model(other, lambda m: m["busy"] and m["lease"]["bytes"] >= 60 << 20)
        await notebook.send("comm_msg", {"comm_id": "full", "data": {}})
        assert await comm_sums(notebook, "full", 1) == [before + 2 * COUNT]
        assert (await bench.model(notebook))["suspended_bytes"] == suspended
        refused = await notebook.run("t.add_(1)")
        assert refused.reply is not None
        assert refused.reply["ename"] == "GpuRefused"
        await bench.server.post(f"api/kernels/{other.kernel_id}/interrupt")
        await other.finish(busy)
        await bench.close(other)

        async def patient_again() -> bool:
            return (await notebook.run(PATIENT)).status == "ok"

        await until(patient_again)
        assert await total(bench, notebook) == before + 2 * COUNT
        await notebook.send("comm_close", {"comm_id": "full", "data": {}})

    run(scenario())
