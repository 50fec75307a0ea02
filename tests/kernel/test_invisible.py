"""With the extension a session looks to its user and to Jupyter as it does without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.jsonutil import parse_date
from kernel_bench import Bench, until
from live_server import Run, TestServer, running

from jupyter_gpu_predict.demo.client import API, Execution

IDLE_S = 8
CULLING = {
    "MappingKernelManager.cull_idle_timeout": IDLE_S,
    "MappingKernelManager.cull_interval": 1,
    "MappingKernelManager.cull_connected": True,
}
CUSTOM = """
k = get_ipython().kernel
k.session.send(k.iopub_socket, "somebodys_own", {"a": 1}, parent=k.get_parent("shell"));
"""
CELLS = (
    "x = 41",
    "x + 1",
    "print('out')",
    "import sys; print('err', file=sys.stderr)",
    "1 / 0",
    "x = = 1",
    "import asyncio; await asyncio.sleep(0.01); x",
    "%%time\nx",
    "%who",
    "display(x); x;",
    CUSTOM,
    "from comm import create_comm; c = create_comm('nobody', {}, comm_id='fixed'); c.close()",
    "",
)
LOOK = """
import gc, json, os, signal, subprocess, sys, threading, warnings
def look():
    shell = get_ipython()
    code = "import json, os, sys; print(json.dumps([dict(os.environ), sys.path]))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return {
        "environ": dict(os.environ),
        "path": sys.path,
        "child_environ": json.loads(child.stdout)[0],
        "child_path": json.loads(child.stdout)[1],
        "modules": sorted(sys.modules),
        "names": sorted(shell.user_ns),
        "hidden": sorted(shell.user_ns_hidden),
        "main": sorted(vars(sys.modules["__main__"])),
        "who": shell.run_line_magic("who_ls", ""),
        "callbacks": {event: len(found) for event, found in shell.events.callbacks.items()},
        "threads": sorted(type(t).__name__ for t in threading.enumerate()),
        "sigint": str(signal.getsignal(signal.SIGINT)),
        "sigterm": str(signal.getsignal(signal.SIGTERM)),
        "filters": len(warnings.filters),
        "gc": gc.get_threshold(),
        "magics": sorted(set(shell.magics_manager.magics["line"]) - {"gpu"}),
        "cwd": os.path.basename(os.getcwd()),
        "argv": len(sys.argv),
    }
print(json.dumps(look()))
"""
OURS = "JUPYTER_GPU_PREDICT_GPU"
"""The variable that names a simulated GPU, as CUDA_VISIBLE_DEVICES does a real one."""


@pytest.fixture(scope="module")
def server_options() -> dict[str, object]:
    return {**CULLING, "GpuPredict.forecast_interval_s": 1}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, run: Run[Any]) -> Iterator[TestServer]:
    """A server without the extension, otherwise the same."""
    process = TestServer(tmp_path_factory.mktemp("plain"), options=CULLING, extension=False)
    with running(process, run):
        yield process


def told(execution: Execution) -> list[Any]:
    """Return what a front end is told about a cell, in order; pieces of a stream are one."""
    found: list[Any] = []
    for message in execution.messages:
        kind, content = message["msg_type"], message["content"]
        if kind == "stream" and found and found[-1][:2] == [kind, content["name"]]:
            found[-1][2] += content["text"]
        elif kind == "stream":
            found.append([kind, content["name"], content["text"]])
        elif kind == "status":
            found.append([kind, content["execution_state"]])
        else:
            found.append([kind, content])
    return found


async def session(server: TestServer) -> dict[str, Any]:
    """Run a session and return all that its front end saw."""
    notebook = await server.open("session.ipynb")
    done = [await notebook.run(code) for code in CELLS]
    silent = await notebook.run("x", silent=True, user_expressions={"x": "x"})
    asked = [
        await notebook.finish(await notebook.send(kind, content))
        for kind, content in (
            ("complete_request", {"code": "x.bit_l", "cursor_pos": 7}),
            ("inspect_request", {"code": "x", "cursor_pos": 1, "detail_level": 0}),
            ("is_complete_request", {"code": "for"}),
            ("comm_info_request", {}),
            (
                "history_request",
                {"output": True, "raw": True, "hist_access_type": "tail", "n": 50},
            ),
        )
    ]
    looked = await notebook.run(LOOK)
    replies = [e.reply for e in (*done, silent, *asked)]
    for reply in replies:
        assert reply is not None
        reply.pop("engine_info", None)
    await notebook.close()
    return {
        "told": [told(e) for e in (*done, silent, *asked)],
        "replies": replies,
        "others": {(m["msg_type"], m["content"].get("execution_state")) for m in notebook.others},
        "inside": json.loads(looked.text),
    }


@pytest.fixture(scope="module")
def both(server: TestServer, plain: TestServer, run: Run[Any]) -> list[dict[str, Any]]:
    """The same session with the extension and without."""

    async def run_both() -> list[dict[str, Any]]:
        return [await session(server), await session(plain)]

    found: list[dict[str, Any]] = run(run_both())
    return found


def test_jupyter_sees_no_activity_of_ours_and_culls_an_idle_kernel(
    server: TestServer, plain: TestServer, bench: Bench, run: Run[Any]
) -> None:
    async def idle_until_culled(on: TestServer) -> None:
        notebook = await on.open("idle.ipynb")
        ended = (await notebook.run("1 + 1")).messages[-1]
        assert ended["content"] == {"execution_state": "idle"}

        async def last_activity() -> str:
            status, model = await on.request("GET", f"api/kernels/{notebook.kernel_id}")
            assert status in {200, 404}
            assert status == 404 or model["execution_state"] == "idle"
            return "culled" if status == 404 else str(model["last_activity"])

        async def heard() -> bool:
            # The server hears the cell's end by a socket of its own.
            model = await on.get(f"api/kernels/{notebook.kernel_id}")
            late = parse_date(model["last_activity"]) < parse_date(ended["header"]["date"])
            return model["execution_state"] == "idle" and not late

        await until(heard)
        before = await last_activity()
        assert before != "culled"
        if on is server:
            for size in (1 << 20, 2 << 20):
                assert (await bench.do(notebook, "claim", bytes=size))["state"] == "done"
            assert (await bench.do(notebook, "reclaim", wait=True))["state"] == "done"
            await on.post(f"{API}/kernels/{notebook.kernel_id}/pin")
        seen: set[str] = set()

        async def culled() -> bool:
            seen.add(await last_activity())
            return "culled" in seen

        await until(culled)
        assert seen == {before, "culled"}
        await notebook.close()

    async def scenario() -> None:
        await asyncio.gather(idle_until_culled(server), idle_until_culled(plain))

    run(scenario())


@pytest.mark.parametrize("what", ["told", "replies"])
def test_a_front_end_is_told_the_same(both: list[dict[str, Any]], what: str) -> None:
    with_it, without = (both[i][what] for i in (0, 1))
    for cell, a, b in zip((*CELLS, "silent", *"qqqqq"), with_it, without, strict=True):
        if what == "told" and "%%time" in cell:
            assert [told[0] for told in a] == [told[0] for told in b]
        else:
            assert a == b, cell


def test_nothing_reaches_a_front_end_that_it_did_not_ask_for(both: list[dict[str, Any]]) -> None:
    assert both[0]["others"] <= both[1]["others"] | {("status", "busy"), ("status", "idle")}
    assert ["somebodys_own", {"a": 1}] in both[0]["told"][CELLS.index(CUSTOM)]


def test_the_process_is_as_it_was(both: list[dict[str, Any]]) -> None:
    with_it, without = both[0]["inside"], both[1]["inside"]
    for environ in ("environ", "child_environ"):
        a, b = with_it.pop(environ), without.pop(environ)
        assert a.pop(OURS).startswith("SIM-GPU-")
        assert OURS not in b
        # A kernel that polls its parent would die with a killed server.
        b.pop("JPY_PARENT_PID")
        assert "JPY_PARENT_PID" not in a
        assert "PYTHONPATH" not in a
        assert set(a) == set(b)
        assert {n for n in a if a[n] != b[n]} <= {
            "IPYTHONDIR",
            "JPY_SESSION_NAME",
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
        }
    new = set(with_it.pop("modules")) - set(without.pop("modules"))
    assert not {"dill", "torch", "numpy"} & new
    assert {n.partition(".")[0] for n in new} <= {"jupyter_gpu_predict", "fractions", "mmap"}
    without["threads"].remove("ParentPollerUnix")
    assert with_it == without


def test_the_user_still_meets_their_own_dill(server: TestServer, run: Run[Any]) -> None:
    async def scenario() -> None:
        # A kernel of its own: that of the session may have been culled meanwhile.
        notebook = await server.open("dill.ipynb")
        code = "import pickle; before = dict(pickle._Pickler.dispatch)\n%gpu snapshot kept"
        assert (await notebook.run(code)).status == "ok"
        after = "print(pickle._Pickler.dispatch == before)\nimport dill\nprint(dill.__file__)"
        answer = (await notebook.run(after)).text.splitlines()
        assert answer[0] == "True"
        assert "site-packages" in answer[1]
        await notebook.close()

    run(scenario())
