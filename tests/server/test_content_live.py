"""The notebook's content in a live server's forecasts: real kernels, a real contents API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import SERVER_OPTIONS, Run, TestServer, event_loop, running, until

from jupyter_gpu_predict.demo.client import API, Execution, Notebook

SOURCES = [
    "import time",
    "step = 1",
    "step += 1\nprint(step)",
    "import os\nwhile not os.path.exists('go'): time.sleep(0.05)",
    "last = step",
]
OPTIONS = {**SERVER_OPTIONS, "GpuPredict.forecast_interval_s": 1, "GpuPredict.prebind": False}


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    with event_loop() as run_on_it:
        yield run_on_it


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, run: Run[Any]) -> Iterator[TestServer]:
    with running(TestServer(tmp_path_factory.mktemp("content"), options=OPTIONS), run) as process:
        yield process


def notebook_of(sources: list[str], **more: Any) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "id": f"c{i}", "source": source.splitlines(keepends=True),
         "metadata": {}, "outputs": [], "execution_count": None}
        for i, source in enumerate(sources)
    ]  # fmt: skip
    text = {"cell_type": "markdown", "id": "text", "source": "Words", "metadata": {}}
    return {"cells": [text, *cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5, **more}


async def save(server: TestServer, path: str, sources: list[str]) -> None:
    """Save a notebook as JupyterLab does."""
    body = {"type": "notebook", "format": "json", "content": notebook_of(sources)}
    status, answer = await server.request("PUT", f"api/contents/{path}", body)
    assert status in {200, 201}, answer


async def sent(notebook: Notebook, code: str, cell_id: str) -> Execution:
    """Send a cell with its id, as JupyterLab does."""
    execution = Execution(f"{notebook.session}-{len(notebook.executions)}")
    notebook.executions[execution.msg_id] = execution
    header = {
        "msg_id": execution.msg_id, "msg_type": "execute_request", "session": notebook.session,
        "username": "user", "version": "5.3", "date": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
    message = {
        "channel": "shell", "header": header, "parent_header": {},
        "metadata": {"cellId": cell_id}, "content": content, "buffers": [],
    }  # fmt: skip
    assert notebook._socket is not None
    await notebook._socket.write_message(json.dumps(message))
    return execution


async def forecast_where(
    server: TestServer, notebook: Notebook, holds: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    last: dict[str, Any] = {}

    async def found() -> bool:
        last.update(await server.get(f"{API}/kernels/{notebook.kernel_id}/forecast"))
        return bool(last["model"] and holds(last))

    try:
        await until(found, 30)
    except AssertionError:
        pytest.fail(f"no such forecast; the last one is {last}")
    return last


def chances(forecast: dict[str, Any]) -> dict[int, float]:
    return {c["position"]: c["probability"] for c in forecast["next_cells"]}


def test_the_next_cell_follows_runs_saves_and_the_queue(server: TestServer, run: Run[Any]) -> None:
    async def scenario() -> None:
        await save(server, "work.ipynb", SOURCES)
        notebook = await server.open("work.ipynb")
        for i in range(2):
            await notebook.finish(await sent(notebook, SOURCES[i], f"c{i}"))
        seen = await forecast_where(server, notebook, lambda f: max(chances(f)) >= 2)
        seen = await forecast_where(
            server, notebook, lambda f: f["next_cells"] and f["next_cells"][0]["position"] == 2
        )
        first = seen["next_cells"][0]
        assert (first["cell_id"], first["line"]) == ("c2", "step += 1")
        assert first["probability"] > 0.5
        assert seen["need_model"] == "content"
        assert {n["model"] for n in seen["needs"]} > {"content"}
        assert seen["next_s"]["low"] < seen["next_s"]["mid"] < seen["next_s"]["high"]
        served = [h["need_probability"] for h in seen["horizons"]]
        assert next(n["probabilities"] for n in seen["needs"] if n["model"] == "content") == served

        # The cell that is next becomes one that trains: it has not run, its source says so.
        edited = [*SOURCES]
        edited[2] = "import torch\ntorch.nn.Linear(2, 2).to('cuda')\nprint(step)"
        await save(server, "work.ipynb", edited)
        after = await forecast_where(
            server,
            notebook,
            lambda f: f["next_cells"] and f["next_cells"][0]["line"] == "import torch",
        )
        assert after["horizons"][-1]["need_probability"] > 0.2 > served[-1]

        # A cell runs and others are queued behind it: what is next is certain, and in their order.
        await save(server, "work.ipynb", SOURCES)
        waiting = [await sent(notebook, SOURCES[i], f"c{i}") for i in (3, 1, 4)]
        queued = await forecast_where(server, notebook, lambda f: chances(f) == {1: 1.0})
        assert queued["next_s"]["low"] == queued["next_s"]["high"]
        (server.root / "go").touch()
        for execution in waiting:
            assert (await notebook.finish(execution)).status == "ok"
        await forecast_where(server, notebook, lambda f: len(chances(f)) > 1)

        shown = (await notebook.run("%gpu forecast")).text
        assert "Next, P " in shown
        assert "P(needed) is content's." in shown
        assert "code cell 5: last = step" in shown
        await server.end(notebook)

    run(scenario())


def test_a_notebook_that_cannot_be_read_is_named_and_timing_serves(
    server: TestServer, run: Run[Any]
) -> None:
    async def scenario() -> None:
        (server.root / "broken.ipynb").write_text('{"cells": [{"cell_type": "code", "sou')
        for path, why in (("missing.ipynb", "No such file"), ("broken.ipynb", "no notebook of")):
            notebook = await server.open(path)
            seen = await forecast_where(
                server, notebook, lambda f, why=why: any(why in note for note in f["notes"])
            )
            assert seen["next_cells"] == []
            assert seen["need_model"] != "content"
            assert any(
                note.startswith(f"notebook: {path} cannot be read") for note in seen["notes"]
            )
            await server.end(notebook)

        # A file that is mended is read at the next look.
        notebook = await server.open("broken.ipynb")
        await notebook.run("1")
        (server.root / "broken.ipynb").write_text(json.dumps(notebook_of(SOURCES)))
        await forecast_where(server, notebook, lambda f: f["next_cells"])
        await server.end(notebook)

    run(scenario())


def test_a_renamed_notebook_stays_known(server: TestServer, run: Run[Any]) -> None:
    async def scenario() -> None:
        await save(server, "before.ipynb", SOURCES)
        notebook = await server.open("before.ipynb")
        await forecast_where(server, notebook, lambda f: f["next_cells"])
        sessions = await server.get("api/sessions")
        session = next(s for s in sessions if s["kernel"]["id"] == notebook.kernel_id)
        await server.request("PATCH", "api/contents/before.ipynb", {"path": "after.ipynb"})
        await server.request("PATCH", f"api/sessions/{session['id']}", {"path": "after.ipynb"})
        await save(server, "after.ipynb", ["renamed = True", *SOURCES])
        await notebook.run("1")
        await forecast_where(
            server, notebook, lambda f: any(c["line"] == "renamed = True" for c in f["next_cells"])
        )
        assert not (Path(server.root) / "before.ipynb").exists()
        await server.end(notebook)

    run(scenario())
