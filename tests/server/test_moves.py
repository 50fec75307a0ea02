"""Snapshots and moves of real kernels, between and during what their users do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from live_server import Run, TestServer, started, until, until_gone

from jupyter_gpu_predict.demo.client import API, Execution, Notebook
from jupyter_gpu_predict.demo.reference import DIGESTS, parse_digests

STATE = """
import os, random, sys, torch
torch.manual_seed(5); random.seed(5)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters())
def step():
    optimizer.zero_grad()
    loss = (model(torch.rand(16, 64)) ** 2).mean()
    loss.backward(); optimizer.step()
    return loss.item()
class Counter:
    total = 0
    def add(self, n): self.total += n; return self.total
counter = Counter()
weights = model[0].weight.detach()
losses = [step() for _ in range(3)]
os.environ["MOVED_ALONG"] = "yes"; os.chdir("/"); sys.path.append("/nowhere")
"""


THREAD = """
import threading, time
t = threading.Thread(target=time.sleep, args=(60,), daemon=True)
t.start(); del t
"""


async def migrate(server: TestServer, notebook: Notebook, **body: Any) -> dict[str, Any]:
    return await server.do(notebook, "migrate", body)


async def gpu_of(server: TestServer, notebook: Notebook) -> str:
    return str((await server.kernel(notebook))["lease"]["gpu_uuid"])


async def pid_of(server: TestServer, notebook: Notebook) -> int:
    return int((await server.kernel(notebook))["pid"])


async def digests(notebook: Notebook) -> dict[str, str]:
    execution = await notebook.run("", store_history=False, user_expressions={"digests": DIGESTS})
    return parse_digests(execution.reply or {})


@pytest.fixture(scope="module")
def trained(server: TestServer, run: Run[Any]) -> Notebook:
    return run(server.opened("trained.ipynb", STATE))


def test_a_moved_kernel_is_the_same_to_its_user(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        second = Notebook(server, trained.kernel_id)
        await second.connect()
        before = await digests(trained)
        pid, gpu = await pid_of(server, trained), await gpu_of(server, trained)
        count = (await trained.run("1")).reply["execution_count"]

        moved = await migrate(server, trained)

        assert moved["state"] == "done", moved
        assert moved["result"]["rung"] == "relaunch"
        assert await pid_of(server, trained) != pid
        assert await gpu_of(server, trained) == moved["result"]["gpu_uuid"] != gpu
        await until_gone(pid)
        assert await digests(trained) == before
        after = await trained.run("In[-2], Out[len(In) - 2], counter.add(2), weights is not None")
        assert after.reply["execution_count"] == count + 1
        assert after.text == "('1', 1, 2, True)"
        outside = await trained.run(
            "os.environ['MOVED_ALONG'], os.getcwd(), '/nowhere' in sys.path, "
            "weights.data_ptr() == model[0].weight.data_ptr(), "
            "optimizer.param_groups[0]['params'][0] is model[0].weight"
        )
        assert outside.text == "('yes', '/', True, True, True)"
        assert (await second.run("counter.total")).text == "2"
        assert not trained.closed
        assert not second.closed
        states = {m["content"].get("execution_state") for m in trained.others + second.others}
        assert not states & {"restarting", "dead", "starting"}
        await second.close()

    run(story())


def test_training_goes_on_bit_by_bit_as_without_a_move(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> tuple[str, str]:
        twin = await server.opened("twin.ipynb", STATE)
        # A second tab makes any ipykernel draw a random number when it connects.
        second = Notebook(server, twin.kernel_id)
        await second.connect()
        await second.close()
        await twin.run("counter.add(2)")
        code = "[step() for _ in range(3)], float(weights.double().sum()), random.random()"
        texts = (await trained.run(code)).text, (await twin.run(code)).text
        await server.end(twin)
        return texts

    moved, plain = run(story())
    assert moved == plain


def test_nothing_sent_during_a_move_is_lost(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        await trained.run("seen = []")
        started = await server.post(f"{API}/kernels/{trained.kernel_id}/migrate", {})
        sent = []
        while (await server.get(f"{API}/operations/{started['id']}"))["state"] == "running":
            sent.append(await trained.start(f"seen.append({len(sent)}); len(seen)"))
            await asyncio.sleep(0.05)
        for number, execution in enumerate(sent):
            await trained.finish(execution)
            assert execution.text == str(number + 1)
        assert (await trained.run("seen == list(range(len(seen)))")).text == "True"
        operation = await server.operation(started)
        assert operation["state"] == "done", operation

    run(story())


def test_a_run_all_in_the_queue_goes_on_in_the_new_process(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        await trained.run("import time; order = []")
        cells = [await trained.start(f"time.sleep(0.7); order.append({i})") for i in range(6)]
        moved = await migrate(server, trained)
        assert moved["state"] == "done", moved
        for cell in cells:
            await trained.finish(cell)
            assert cell.status == "ok", cell.text
        assert (await trained.run("order")).text == "[0, 1, 2, 3, 4, 5]"

    run(story())


def test_a_move_repeats_nothing_from_before_a_restart(server: TestServer, run: Run[Any]) -> None:
    async def story() -> None:
        notebook = await server.opened("restarted.ipynb", "import time")
        mark = server.root / "marks"
        await started(notebook, "time.sleep(300)")
        await notebook.start(f"open({str(mark)!r}, 'a').write('x')")
        await until(lambda: _has_more(server, notebook))
        await server.post(f"api/kernels/{notebook.kernel_id}/restart")
        assert (await notebook.run("fresh = 1")).status == "ok"
        assert (await server.kernel(notebook))["queued_runs"] == 0
        moved = await migrate(server, notebook)
        assert moved["state"] == "done", moved
        assert (await notebook.run("fresh")).text == "1"
        assert not mark.exists()
        await server.end(notebook)

    run(story())


def test_a_run_all_goes_on_after_its_tab_was_closed_and_opened_again(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("closed.ipynb", "import time; order = []")
        cells = [await notebook.start(f"time.sleep(0.8); order.append({i})") for i in range(5)]
        await until(lambda: _begun(cells[0]))
        await notebook.close()
        again = Notebook(server, notebook.kernel_id)
        again.session = notebook.session
        await again.connect()
        moved = await migrate(server, again)
        assert moved["state"] == "done", moved
        await until(lambda: _says(again, "order", "[0, 1, 2, 3, 4]"))
        await server.end(again)

    run(story())


async def _begun(cell: Execution) -> bool:
    return bool(cell.messages)


async def _has_more(server: TestServer, notebook: Notebook) -> bool:
    return bool((await server.kernel(notebook))["queued_runs"])


async def _says(notebook: Notebook, code: str, text: str) -> bool:
    return (await notebook.run(code)).text == text


def test_suspended_state_moves_without_coming_back(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        before = await digests(trained)

        async def reclaimed() -> bool:
            return (await server.do(trained, "reclaim", {"wait": True}))["state"] == "done"

        await until(reclaimed)
        moved = await migrate(server, trained)
        assert moved["state"] == "done", moved
        model = await server.kernel(trained)
        assert model["state"] == "suspended"
        assert model["suspended_bytes"] > 0
        assert await digests(trained) == before

    run(story())


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("stream = open('/proc/self/status')", "stream"),
        (THREAD, "hread"),
        ("import subprocess; child = subprocess.Popen(['sleep', '60'])", "child"),
        ("numbers = (i for i in range(3)); next(numbers)", "numbers"),
    ],
)  # fmt: skip
def test_what_cannot_move_is_named_and_the_kernel_stays(
    server: TestServer, run: Run[Any], code: str, named: str
) -> None:
    async def story() -> None:
        notebook = await server.opened("stays.ipynb", "kept = 42")
        assert (await notebook.run(code)).status == "ok"
        pid = await pid_of(server, notebook)
        moved = await migrate(server, notebook)
        assert moved["state"] == "failed"
        assert named in moved["error"]
        assert await pid_of(server, notebook) == pid
        assert (await notebook.run("kept")).text == "42"
        assert (await server.kernel(notebook))["state"] == "bound"
        await server.end(notebook)

    run(story())


def test_a_standby_that_dies_leaves_the_kernel_as_it_was(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        before, pid = await digests(trained), await pid_of(server, trained)
        started = await server.post(f"{API}/kernels/{trained.kernel_id}/migrate", {})

        async def standby() -> int | None:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != pid:
                    try:
                        words = (entry / "cmdline").read_text()
                    except OSError:
                        continue
                    if f"{trained.kernel_id}-" in words:
                        return int(entry.name)
            return None

        os.kill(await until(standby), 9)
        operation = await server.operation(started, timeout_s=180)
        assert operation["state"] == "failed"
        assert await pid_of(server, trained) == pid
        assert await digests(trained) == before

    run(story())


def test_a_kernel_killed_during_its_move_lets_its_lease_go(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened(
            "killed.ipynb", "import time, torch; t = torch.ones(1 << 20)"
        )
        await until(lambda: _bound(server, notebook))
        epoch = (await server.kernel(notebook))["lease"]["epoch"]
        await notebook.start("time.sleep(120)")
        started = await server.post(f"{API}/kernels/{notebook.kernel_id}/migrate", {})
        await until(lambda: _moves(server, notebook))
        os.kill(await pid_of(server, notebook), 9)

        async def let_go() -> bool:
            status, model = await server.request("GET", f"{API}/kernels/{notebook.kernel_id}")
            return status == 404 or model["lease"] is None or model["lease"]["epoch"] > epoch

        await until(let_go)
        operation = await server.operation(started)
        assert operation["state"] == "failed"
        assert notebook.kernel_id in operation["error"]
        leases = [x for g in (await server.get(f"{API}/gpus"))["gpus"] for x in g["leases"]]
        assert all(x["state"] != "migrating" for x in leases)
        await server.end(notebook)

    run(story())


async def _moves(server: TestServer, notebook: Notebook) -> bool:
    return bool((await server.kernel(notebook))["state"] == "migrating")


def test_two_moves_of_one_kernel_at_once_conflict(
    server: TestServer, run: Run[Any], trained: Notebook
) -> None:
    async def story() -> None:
        first = await server.post(f"{API}/kernels/{trained.kernel_id}/migrate", {})
        status, error = await server.request(
            "POST", f"{API}/kernels/{trained.kernel_id}/migrate", {}
        )
        assert status == 409
        assert trained.kernel_id in error["message"]
        assert (await server.operation(first))["state"] == "done"

    run(story())


def test_a_failing_gpu_is_emptied_and_takes_no_more(server: TestServer, run: Run[Any]) -> None:
    async def story() -> None:
        notebook = await server.opened(
            "failing.ipynb", "import torch; t = torch.arange(1 << 20, dtype=torch.float32)"
        )
        await until(lambda: _bound(server, notebook))
        gpu = await gpu_of(server, notebook)
        await server.post(f"{API}/gpus/{gpu}/health", {"ecc_uncontained": 1})

        async def emptied() -> bool:
            model = (await server.get(f"{API}/gpus"))["gpus"]
            failing = next(g for g in model if g["uuid"] == gpu)
            return failing["cordoned"] and not failing["leases"]

        await until(emptied, 120)
        assert await gpu_of(server, notebook) != gpu
        assert (await notebook.run("float(t.sum()) == (1 << 20) * ((1 << 20) - 1) / 2")).text
        other = await server.opened("later.ipynb", "import torch; u = torch.ones(1 << 20)")
        await until(lambda: _bound(server, other))
        assert await gpu_of(server, other) != gpu
        await server.post(f"{API}/gpus/{gpu}/health", {"ecc_uncontained": 0})
        await server.post(f"{API}/gpus/{gpu}/uncordon")
        await server.end(notebook)
        await server.end(other)

    run(story())


async def _bound(server: TestServer, notebook: Notebook) -> bool:
    return bool((await server.kernel(notebook))["used_bytes"])


def test_a_snapshot_brings_a_session_back_after_a_restart(
    server: TestServer, run: Run[Any]
) -> None:
    async def story() -> None:
        notebook = await server.opened("saved.ipynb", STATE)
        before = await digests(notebook)
        saved = await server.do(notebook, "snapshot", {"name": "evening"})
        assert saved["state"] == "done", saved
        await server.post(f"api/kernels/{notebook.kernel_id}/restart")
        assert (await notebook.run("'model' in globals()")).text == "False"
        restored = await server.do(notebook, "restore", {"snapshot": "evening"})
        assert restored["state"] == "done", restored
        assert await digests(notebook) == before
        assert (await notebook.run("counter.add(1)")).text == "1"
        listed = await server.get(f"{API}/snapshots")
        assert [s["name"] for s in listed] == ["evening"]
        status, _ = await server.request("DELETE", f"{API}/snapshots/evening")
        assert status == 204
        assert await server.get(f"{API}/snapshots") == []
        await server.end(notebook)

    run(story())


def test_an_altered_snapshot_is_refused_by_name(
    server: TestServer, run: Run[Any], server_folder: Path
) -> None:
    async def story() -> None:
        notebook = await server.opened("altered.ipynb", "secret = list(range(1000))")
        saved = await server.do(notebook, "snapshot", {"name": "altered"})
        folder = server_folder / "data" / "gpu-predict" / "snapshots"
        manifest = folder / "manifests" / f"{saved['result']['snapshot_id']}.json"
        assert manifest.stat().st_mode & 0o777 == 0o600
        manifest.write_text(manifest.read_text().replace('"altered"', '"changed"'))
        restored = await server.do(notebook, "restore", {"snapshot": "changed"})
        assert restored["state"] == "failed"
        assert restored["code"] == "snapshot_signature"
        await server.end(notebook)

    run(story())
