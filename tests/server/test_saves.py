"""Snapshots that are written while the kernel goes on: asked for, automatic, cancelled, bounded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from live_server import Run, TestServer, started, until, until_gone

from jupyter_gpu_predict.demo.client import API, Notebook

HALTED = """
import os, signal
import jupyter_gpu_predict.snapshots.background as background
fork, halting = background._fork, [True]
def halted():
    pid = fork()
    if pid == 0 and halting[0]:
        os.kill(os.getpid(), signal.SIGSTOP)
    return pid
background._fork = halted
def writer():
    return get_ipython().kernel._gpu_predict_agent.saves._under_way[1].pid
"""
"""Lets the process that writes a snapshot halt before it begins."""

OFF = {"autosave": False, "autosave_idle_s": 600, "autosave_long_s": 300, "autosave_keep": 3}


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    return {"GpuPredict.autosave": False}


@pytest.fixture
def notebook(server: TestServer, run: Run[Any], request: Any) -> Iterator[Notebook]:
    """Return a notebook of the test's own, on a server that saves nothing by itself."""
    opened = run(server.opened(f"{request.node.originalname}.ipynb"))
    yield opened
    run(server.request("PUT", f"{API}/policy", OFF))
    run(server.end(opened))


async def say(notebook: Notebook, code: str) -> str:
    execution = await notebook.run(code)
    assert execution.status == "ok", execution.text
    return execution.text


async def catalogue(server: TestServer, notebook: Notebook) -> list[dict[str, Any]]:
    listed = await server.get(f"{API}/snapshots")
    return [s for s in listed if s["kernel_id"] == notebook.kernel_id]


async def begun(server: TestServer, notebook: Notebook) -> dict[str, Any]:
    """Start a snapshot whose writer halts, and wait until the state is caught."""
    started = await server.post(f"{API}/kernels/{notebook.kernel_id}/snapshot", {"name": "halted"})

    async def caught() -> Any:
        operation = await server.get(f"{API}/operations/{started['id']}")
        assert operation["state"] == "running", operation
        return operation["aside"] and operation

    operation: dict[str, Any] = await until(caught)
    return operation


def test_cells_run_while_the_state_of_before_is_written(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        await say(notebook, HALTED)
        await say(notebook, "import time; big = bytearray(3 << 20); x = 'before'")
        operation = await begun(server, notebook)
        assert operation["cancellable"]
        assert await say(notebook, "x = 'after'; big[:] = b'1' * len(big); x") == "'after'"

        # An interrupt goes to all processes of the kernel and is meant for its cell alone.
        sleeps = await started(notebook, "time.sleep(600)")
        await server.post(f"api/kernels/{notebook.kernel_id}/interrupt")
        assert (await notebook.finish(sleeps)).status == "error"
        ties = "from jupyter_gpu_predict.snapshots.ties import ties; ties(get_ipython())"
        assert await say(notebook, ties) == "[]"
        # Another snapshot has to wait.
        status, refused = await server.request(
            "POST", f"{API}/kernels/{notebook.kernel_id}/snapshot", {}
        )
        assert (status, operation["id"] in refused["message"]) == (409, True)

        os.kill(int(await say(notebook, "writer()")), signal.SIGCONT)
        ended = await server.operation(operation)
        assert ended["state"] == "done", ended
        assert ended["done_bytes"] == ended["total_bytes"] >= 3 << 20
        assert not ended["cancellable"]
        assert ended["result"]["pause_s"] > 0
        assert (await catalogue(server, notebook))[0]["automatic"] is False
        restored = await server.do(notebook, "restore", {"snapshot": "halted"})
        assert restored["state"] == "done", restored
        assert restored["done_bytes"] == restored["total_bytes"] > 0
        assert await say(notebook, "x, big == bytes(3 << 20)") == "('before', True)"

    run(story())


def test_a_cancelled_save_leaves_the_store_and_the_kernel_as_they_were(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        await say(notebook, HALTED)
        await say(notebook, "halting[0] = False; x = [1]")
        assert (await server.do(notebook, "snapshot", {"name": "first"}))["state"] == "done"
        before = await catalogue(server, notebook)
        await say(notebook, "halting[0] = True; x.append(2)")
        operation = await begun(server, notebook)
        path = f"{API}/operations/{operation['id']}/cancel"
        status, _ = await server.request("POST", path)
        assert status == 202
        ended = await server.operation(operation)
        assert (ended["state"], ended["code"]) == ("cancelled", "snapshot_cancelled")
        status, refused = await server.request("POST", path)
        assert (status, refused["reason"]) == (409, "conflict")
        assert await catalogue(server, notebook) == before
        assert await say(notebook, "x") == "[1, 2]"
        await say(notebook, "halting[0] = False")
        assert (await server.do(notebook, "snapshot", {"name": "second"}))["state"] == "done"
        assert (await server.do(notebook, "restore", {"snapshot": "first"}))["state"] == "done"
        assert await say(notebook, "x") == "[1]"

    run(story())


def test_a_writer_that_dies_is_told_and_the_next_save_is_fine(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        await say(notebook, HALTED)
        operation = await begun(server, notebook)
        os.kill(int(await say(notebook, "writer()")), signal.SIGKILL)
        ended = await server.operation(operation)
        assert (ended["state"], ended["code"]) == ("failed", "snapshot")
        assert await catalogue(server, notebook) == []
        await say(notebook, "halting[0] = False")
        assert (await server.do(notebook, "snapshot", {"name": "next"}))["state"] == "done"

    run(story())


def test_a_kernel_that_is_shut_down_takes_its_writer_along(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("ends.ipynb", HALTED)
        operation = await begun(server, notebook)
        pid = int(await say(notebook, "writer()"))
        await server.end(notebook)
        await until_gone(pid)
        assert (await server.operation(operation))["state"] in {"failed", "cancelled"}
        assert await catalogue(server, notebook) == []

    run(story())


def test_an_idle_kernel_is_saved_once_after_each_change_and_few_are_kept(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        await say(notebook, "x = 0")
        await say(notebook, "%gpu snapshot mine")
        status, _ = await server.request(
            "PUT", f"{API}/policy", {"autosave": True, "autosave_idle_s": 0.2, "autosave_keep": 2}
        )
        assert status == 200
        seen: set[str] = set()
        for number in (1, 2, 3):
            await say(notebook, f"x = {number}")

            async def saved() -> list[dict[str, Any]]:
                return [s for s in await catalogue(server, notebook)
                        if s["automatic"] and s["id"] not in seen]  # fmt: skip

            (new,) = await until(saved)
            assert (new["reason"], new["name"]) == (
                "idle",
                "auto-test_an_idle_kernel_is_saved_once_after_each_change_and_few_are_kept",
            )
            seen.add(new["id"])

            async def settled() -> bool:
                view = (await server.get(f"{API}/plan"))["view"]
                own = next(k for k in view["kernels"] if k["kernel_id"] == notebook.kernel_id)
                return own["changed_s"] is None and own["savable"]

            await until(settled)

        async def at_rest() -> bool:
            plan = await server.get(f"{API}/plan")
            saves = any(a["action"] == "TakeSnapshot" for a in plan["plan"]["actions"])
            under_way = (await server.kernel(notebook))["operation"]
            return not (plan["view"]["settings"]["autosave"] or saves or under_way)

        async def settled_down() -> bool:
            left = await catalogue(server, notebook)
            checked = [s["verified"] for s in left if s["automatic"]]
            return len(left) == 3 and checked == [True, True]

        await until(settled_down)
        assert "snapshot_verified" in await say(notebook, "%gpu history")
        assert {s["name"] for s in await catalogue(server, notebook)} >= {"mine"}
        # From here on `last` must not come to mean a state of after `x = 3`.
        await server.request("PUT", f"{API}/policy", {"autosave": False})
        await until(at_rest)
        await say(notebook, "x = 'lost'")
        shown = await say(notebook, "%gpu snapshots")
        assert "idle" in shown
        assert "Restored 'auto-" in await say(notebook, "%gpu restore last")
        assert await say(notebook, "x") == "3"

    run(story())


def test_a_cell_that_ran_long_before_is_preceded_by_a_snapshot(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        long = "import time; time.sleep(1.1); x = x + 1"
        await say(notebook, "x = 10")
        await say(notebook, long)
        assert await catalogue(server, notebook) == []
        await server.request("PUT", f"{API}/policy", {"autosave": True, "autosave_long_s": 1})

        async def told() -> bool:
            agent = "get_ipython().kernel._gpu_predict_agent"
            return await say(notebook, f"{agent}.saves.long_cell_s") == "1.0"

        await until(told)
        await say(notebook, "x = 20")
        await say(notebook, long)

        async def saved() -> list[dict[str, Any]]:
            return await catalogue(server, notebook)

        (snapshot,) = await until(saved)
        assert (snapshot["reason"], snapshot["automatic"]) == ("long cell", True)
        assert await say(notebook, "x") == "21"
        await server.do(notebook, "restore", {"snapshot": snapshot["id"]})
        assert await say(notebook, "x") == "20"
        # What earlier kernels of a notebook took is known to the next one.
        again = await server.opened(
            "test_a_cell_that_ran_long_before_is_preceded_by_a_snapshot.ipynb", "x = 30"
        )
        await say(again, long)
        await until(lambda: catalogue(server, again))
        await server.end(again)

    run(story())


def test_a_malformed_restore_is_refused(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def story() -> None:
        path = f"{API}/kernels/{notebook.kernel_id}/restore"
        for bad in ({"only": "x"}, {"only": ["a b"]}, {"recompute": 1}, {"x": 1}):
            status, model = await server.request("POST", path, {"snapshot": "last", **bad})
            assert (status, model["reason"]) == (400, "bad_input")
        status, model = await server.request("POST", path, {"snapshot": "last"})
        assert (status, model["reason"]) == (404, "not_found")
        path = f"{API}/kernels/{notebook.kernel_id}/snapshot"
        status, model = await server.request("POST", path, {"name": "last"})
        assert (status, "latest" in model["message"]) == (400, True)

    run(story())
