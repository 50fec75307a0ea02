"""`%gpu` and `%%gpu` in real kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel
from kernel_bench import Bench
from live_server import Run

from jupyter_gpu_predict.demo.client import API, Notebook


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    return {"GpuPredict.simulated_memory": "128MiB", "GpuPredict.forecast_interval_s": 1}


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    opened = run(bench.server.open("magics.ipynb"))
    yield opened
    run(bench.close(opened))


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("%gpu", "GPU: bound on SIM-GPU-"),
        ("%gpu status", "GPU: bound on SIM-GPU-"),
        ("%gpu need 8MiB --priority high --critical", "The next cells claim 8 MiB."),
        ("%gpu why", "Decisions about this kernel"),
        ("%gpu history", "What happened to this kernel"),
        ("%gpu help", "%gpu need 12GiB"),
        ("%gpu snapshots", "No snapshots yet"),
    ],
)
def test_a_command_returns_an_object_that_shows_itself(
    bench: Bench, notebook: Notebook, run: Run[Any], line: str, title: str
) -> None:
    async def scenario() -> None:
        done = await notebook.run(line)
        assert done.status == "ok", done.text
        (output,) = done.outputs
        assert output["output_type"] == "execute_result"
        assert title in output["data"]["text/plain"]
        html = output["data"]["text/html"]
        assert html.startswith("<b>")
        rows = output["data"]["text/plain"].count("SIM-GPU-0  ")
        assert html.count("<td") >= rows
        kind = await bench.say(notebook, "print(type(_).__name__, type(_.data).__name__)")
        assert kind.startswith("GpuResult ")

    run(scenario())


def test_the_status_says_that_the_gpus_are_simulated(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        shown = await bench.say(notebook, "%gpu")
        assert "simulated GPUs" in shown
        assert "128 MiB" in shown
        assert "Simulated GPU" in shown

    run(scenario())


def test_a_forecast_names_its_model(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        await bench.until_model(notebook, lambda m: m["forecast"])
        shown = await bench.say(notebook, "%gpu forecast")
        model = (await bench.server.get(f"{API}/kernels/{notebook.kernel_id}/forecast"))["model"]
        assert f"served by {model} (history: " in shown
        for horizon in (5, 15, 30, 60, 300):
            assert f"\n{horizon} s " in shown

    run(scenario())


def test_pin_and_unpin(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "%gpu pin")
        assert (await bench.model(notebook))["pinned"]
        assert "Pinned" in await bench.say(notebook, "%gpu")
        await bench.say(notebook, "%gpu unpin")
        assert not (await bench.model(notebook))["pinned"]

    run(scenario())


def test_release_and_the_next_cell(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "%gpu need 8MiB")
        assert (await bench.model(notebook))["lease"]["bytes"] >= 8 << 20
        await bench.say(notebook, "%gpu release\nkept = 5")
        await bench.until_model(notebook, lambda m: m["state"] == "suspended")
        assert await bench.say(notebook, "print(kept)") == "5\n"

    run(scenario())


def test_snapshot_and_restore(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "x = [1]; gone = (i for i in range(3))")
        shown = await bench.say(notebook, "%gpu snapshot mine")
        assert "Snapshot 'mine'" in shown
        assert "gone" in shown
        assert "generator" in shown
        assert "mine" in await bench.say(notebook, "%gpu snapshots")
        assert "mine" in [s["name"] for s in await bench.server.get(f"{API}/snapshots")]
        await bench.say(notebook, "x.append(2)")
        assert "Restored 'mine'" in await bench.say(notebook, "%gpu restore mine")
        assert await bench.say(notebook, "print(x)") == "[1]\n"

    run(scenario())


def test_migrate(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def scenario() -> None:
        await bench.say(notebook, "x = [7]; gone = None")
        before = await bench.model(notebook)
        target = {"SIM-GPU-0": "SIM-GPU-1", "SIM-GPU-1": "SIM-GPU-0"}[before["lease"]["gpu_uuid"]]
        assert "the move begins when this cell has ended" in await bench.say(
            notebook, f"%gpu migrate {target}"
        )
        after = await bench.until_model(
            notebook, lambda m: m["pid"] != before["pid"] and m["state"] != "migrating"
        )
        assert after["lease"]["gpu_uuid"] == target
        assert await bench.say(notebook, "print(x)") == "[7]\n"

    run(scenario())


BAD = {
    "%gpu need": "size",
    "%gpu need 12": "no unit",
    "%gpu need 12 bananas": "unit",
    "%gpu need -1GiB": "above 0",
    "%gpu need 0MiB": "above 0",
    "%gpu need nan": "finite",
    "%gpu need 1MiB --priority urgent": "urgent",
    "%gpu needs 1MiB": "no such command",
    "%gpu frobnicate": "no such command",
    "%gpu __init__": "no such command",
    "%gpu pin please": "no further words",
    "%gpu migrate GPU-nowhere": "GPU-nowhere",
    "%gpu restore": "say which",
    "%gpu restore nothing": "nothing",
    "%gpu restore ../mine": "../mine",
    "%gpu snapshot ../mine": "../mine",
    "%gpu snapshot a/b": "a/b",
    f"%gpu snapshot {'n' * 300}": "300",
    "%%gpu need 12\nbad = 1": "no unit",
    "%%gpu pin\nbad = 1": "need SIZE",
}


@pytest.mark.parametrize("code", BAD)
def test_bad_input_is_a_usage_error_that_changes_nothing(
    bench: Bench, notebook: Notebook, run: Run[Any], code: str
) -> None:
    async def state() -> list[Any]:
        model = await bench.model(notebook)
        snapshots = [s["id"] for s in await bench.server.get(f"{API}/snapshots")]
        stated = await bench.say(
            notebook, "print(get_ipython().kernel._gpu_predict_agent.stated, 'bad' in globals())"
        )
        return [model[k] for k in ("lease", "pinned", "priority", "pid")] + [snapshots, stated]

    async def scenario() -> None:
        before = await state()
        done = await notebook.run(code)
        assert done.reply is not None
        assert done.status == "error"
        assert done.reply["ename"] == "UsageError"
        assert BAD[code] in done.reply["evalue"]
        (output,) = done.outputs
        assert output["name"] == "stderr"
        assert output["text"].startswith("UsageError: ")
        assert await state() == before

    run(scenario())


def test_the_code_below_need_runs_as_a_plain_cell(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        awaited = "%%gpu need 1MiB\nimport asyncio\nawait asyncio.sleep(0)\n!printf shell\n6 * 7"
        done = await notebook.run(awaited)
        assert done.status == "ok", done.text
        assert [o["output_type"] for o in done.outputs] == ["stream", "execute_result"]
        assert done.text == "shell42"
        assert await bench.say(notebook, "%%time\n%%gpu need 1MiB\nx = 8") != ""
        assert await bench.say(notebook, "x") == "8"
        assert (await bench.say(notebook, "%%gpu need 1MiB")) == ""

    run(scenario())


def test_an_error_below_need_is_the_cells_error(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def scenario() -> None:
        failing = await notebook.start("%%gpu need 1MiB\n1 / 0")
        behind = await notebook.start("x = 9")
        await notebook.finish(failing)
        assert failing.reply is not None
        assert failing.reply["ename"] == "ZeroDivisionError"
        assert [o["output_type"] for o in failing.outputs] == ["error"]
        assert (await notebook.finish(behind)).status == "aborted"

    run(scenario())


def test_without_a_server_it_says_so() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:

        def text(code: str) -> str:
            found: list[str] = []

            def hear(message: dict[str, Any]) -> None:
                content = message["content"]
                found.append(content.get("text") or content.get("data", {}).get("text/plain") or "")

            client.execute_interactive(code, output_hook=hear, timeout=60)
            return "".join(found)

        assert text("%load_ext jupyter_gpu_predict") == ""
        shown = text("%gpu")
        assert "No Jupyter server with jupyter_gpu_predict runs this kernel" in shown
        assert "no NVIDIA GPU" in shown or "GPUs of this machine" in shown
        for line in ("%gpu need 1GiB", "%gpu forecast", "%gpu pin", "%gpu snapshot"):
            assert "no Jupyter server with jupyter_gpu_predict" in text(line)
        assert "no unit" in text("%gpu need 1")
        assert text("%gpu need 1GiB\nran = 1") != ""
        assert text("print('ran' in globals())") == "False\n"
        assert "%gpu need 12GiB" in text("%gpu help")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
