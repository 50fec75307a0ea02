"""A kernel dies, Jupyter starts it anew, and its user gets everything back."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from live_server import Run, TestServer, until

from jupyter_gpu_predict.demo.client import API, Notebook

STATE = """
import os, random, numpy as np, warnings
random.seed(7); np.random.seed(7)
class Counter:
    total = 0
    def add(self, n): self.total += n; return self.total
counter = Counter(); counter.add(41)
base = np.arange(100_000.0); view = base[::2]
def later(): return counter.add(1), round(random.random(), 9), round(float(np.random.rand()), 9)
os.environ["KEPT"] = "yes"; os.chdir("/"); np.set_printoptions(precision=3)
gone = (i for i in range(3))
"""


async def die(server: TestServer, notebook: Notebook, how: int = signal.SIGKILL) -> None:
    """Kill a kernel and wait until Jupyter has started it anew."""
    pid = (await server.kernel(notebook))["pid"]
    os.kill(pid, how)
    await until(lambda: _started_anew(server, notebook, pid))


async def _started_anew(server: TestServer, notebook: Notebook, pid: int) -> bool:
    status, model = await server.request("GET", f"{API}/kernels/{notebook.kernel_id}")
    return bool(status == 200 and model["agent"] and model["pid"] != pid)


async def say(notebook: Notebook, code: str) -> str:
    execution = await notebook.run(code)
    assert execution.status == "ok", execution.text
    return execution.text


def test_everything_comes_back_with_one_call_after_a_kill(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("dies.ipynb", STATE)
        assert await say(notebook, "1 + 1") == "2"
        saved = await say(notebook, "%gpu snapshot before")
        assert "gone" in saved
        assert "generator" in saved
        expected = await say(notebook, "later()")
        assert (await server.kernel(notebook))["restorable_snapshot"] is None
        await die(server, notebook)

        offer = (await server.kernel(notebook))["restorable_snapshot"]
        assert offer["name"] == "before"
        assert "SIGKILL" in offer["died"]
        first = await notebook.run("'counter' in globals()")
        shown = first.outputs[0]["data"]
        assert "%gpu restore last" in shown["text/plain"]
        assert "SIGKILL" in shown["text/plain"]
        assert "<code>%gpu restore last</code>" in shown["text/html"]
        assert first.outputs[1]["data"]["text/plain"] == "False"
        assert len((await notebook.run("'counter' in globals()")).outputs) == 1
        assert "kernel_died" in await say(notebook, "%gpu history")

        restored = await say(notebook, "%gpu restore last")
        assert "Restored 'before'" in restored
        assert "gone" in restored
        assert "generator" in restored
        assert (await server.kernel(notebook))["restorable_snapshot"] is None
        assert await say(notebook, "later()") == expected
        assert await say(notebook, "base[0] = 5.0; float(view[0])") == "5.0"
        kept = "os.environ['KEPT'], os.getcwd(), np.get_printoptions()['precision']"
        assert await say(notebook, kept) == "('yes', '/', 3)"
        # Inputs and outputs go on, each under its number.
        last = await notebook.run("(Out[2], In[2], In[-1], len(In) - 1)")
        number = last.reply["execution_count"]
        assert last.text == repr((2, "1 + 1", "(Out[2], In[2], In[-1], len(In) - 1)", number))
        await server.end(notebook)

    run(story())


def test_a_restart_that_the_user_asked_for_offers_nothing(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("restarts.ipynb", "x = [1, 2]")
        await say(notebook, "%gpu snapshot mine")
        await server.post(f"api/kernels/{notebook.kernel_id}/restart")
        again = await notebook.run("'x' in globals()")
        assert [o["data"]["text/plain"] for o in again.outputs] == ["False"]
        assert (await server.kernel(notebook))["restorable_snapshot"] is None
        await say(notebook, "%gpu restore last")
        assert await say(notebook, "x") == "[1, 2]"
        pid = (await server.kernel(notebook))["pid"]
        await notebook.start("exit")
        await until(lambda: _started_anew(server, notebook, pid))
        assert len((await notebook.run("'x' in globals()")).outputs) == 1
        await server.end(notebook)

    run(story())


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os._exit(3)", "exit code 3"),
    ],
)
def test_it_is_said_how_a_kernel_died(
    server: TestServer, run: Run[Any], code: str, said: str
) -> None:
    async def story() -> None:
        notebook = await server.opened("faults.ipynb", "x = 5")
        taken = await server.do(notebook, "snapshot", {"name": "fine"})
        assert taken["state"] == "done", taken
        pid = (await server.kernel(notebook))["pid"]
        await notebook.start(code)

        async def offered() -> Any:
            status, model = await server.request("GET", f"{API}/kernels/{notebook.kernel_id}")
            return status == 200 and model["pid"] != pid and model["restorable_snapshot"]

        offer = await until(offered)
        assert said in offer["died"]
        assert "%gpu restore last" in (await notebook.run("'started'")).text
        restored = await server.do(notebook, "restore", {"snapshot": "last"})
        assert restored["state"] == "done", restored
        last = await notebook.run("x, In[1], len(In) - 1")
        assert last.text == repr((5, "x = 5", last.reply["execution_count"]))
        await server.end(notebook)

    run(story())
