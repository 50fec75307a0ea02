"""GPUs, kernels, snapshots, operations and policy over REST, on a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from border import API, check_error
from live_server import Run, TestServer, until

from jupyter_gpu_predict.demo.client import Notebook

GPUS = ("SIM-GPU-0", "SIM-GPU-1")
MIB = 1 << 20


@pytest.fixture(scope="module")
def notebook(server: TestServer, run: Run[Any]) -> Iterator[Notebook]:
    notebook: Notebook = run(server.opened("folder.ipynb", "kept = {'a': [1, 2, 3]}"))
    yield notebook
    run(server.end(notebook))


def test_gpus_say_that_they_are_simulated(server: TestServer, run: Run[Any]) -> None:
    model = run(server.get(f"{API}/gpus"))
    assert model["simulated"] is True
    assert "simulated" in model["backend"].lower()
    assert [g["uuid"] for g in model["gpus"]] == list(GPUS)
    assert {g["total_bytes"] for g in model["gpus"]} == {512 * MIB}
    assert {g["risk"]["level"] for g in model["gpus"]} == {"none"}


def test_a_kernel_shows_its_notebook_its_process_and_its_cell_runs(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        async def shown() -> Any:
            return await server.get(f"{API}/kernels/{notebook.kernel_id}/trace")

        trace = await until(shown)
        assert trace[0]["outcome"] == "ok"
        assert trace[0]["notebook"] == "folder.ipynb"
        failed = await notebook.run("1 / 0")
        assert failed.status == "error"
        await until(lambda: _ends_with_error(server, notebook))
        kernel = await server.kernel(notebook)
        listed = {k["id"]: k for k in await server.get(f"{API}/kernels")}
        assert listed[notebook.kernel_id].keys() == kernel.keys()
        assert listed[notebook.kernel_id]["pid"] == kernel["pid"]
        pid = (await notebook.run("import os; print(os.getpid())")).text
        assert kernel["pid"] == int(pid)
        assert kernel["notebook"] == "folder.ipynb"
        assert kernel["agent"] is True

    run(look())


async def _ends_with_error(server: TestServer, notebook: Notebook) -> bool:
    trace = await server.get(f"{API}/kernels/{notebook.kernel_id}/trace")
    return bool(trace[-1]["outcome"] == "error")


def test_a_cordoned_gpu_gets_no_new_kernel_until_it_is_uncordoned(
    server: TestServer, run: Run[Any]
) -> None:
    async def look() -> None:
        cordoned = await server.post(f"{API}/gpus/{GPUS[0]}/cordon")
        assert (cordoned["cordoned"], cordoned["uuid"]) == (True, GPUS[0])
        assert cordoned["cordon_reason"]
        other = await server.opened()
        assert (await server.do(other, "claim", {"bytes": 8 * MIB}))["state"] == "done"
        kernel = await server.kernel(other)
        assert kernel["lease"]["gpu_uuid"] == GPUS[1]
        lifted = await server.post(f"{API}/gpus/{GPUS[0]}/uncordon")
        assert (lifted["cordoned"], lifted["cordon_reason"]) == (False, None)
        await server.end(other)

    run(look())


def test_a_kernel_that_was_shut_down_is_gone_with_its_lease(
    server: TestServer, run: Run[Any]
) -> None:
    async def look() -> None:
        other = await server.opened()
        await server.do(other, "claim", {"bytes": 8 * MIB})
        await server.end(other)
        status, model = await server.request("GET", f"{API}/kernels/{other.kernel_id}")
        assert (status, other.kernel_id in model["message"]) == (404, True)
        assert other.kernel_id not in json.dumps(await server.get(f"{API}/gpus"))
        assert other.kernel_id not in json.dumps(await server.get(f"{API}/kernels"))

    run(look())


def test_an_operation_on_a_kernel_that_is_killed_fails_and_the_others_go_on(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        other = await server.opened()
        kernel = await server.kernel(other)
        await other.start("import time; time.sleep(600)")

        async def busy() -> bool:
            return bool((await server.kernel(other))["busy"])

        await until(busy)
        started = await server.post(f"{API}/kernels/{other.kernel_id}/reclaim", {"wait": True})
        assert started["state"] == "running"
        os.kill(kernel["pid"], signal.SIGKILL)
        ended = await server.operation(started)
        assert (ended["state"], ended["status"] >= 400) == ("failed", True)
        assert ended["error"]
        assert (await notebook.run("print(kept)")).text == "{'a': [1, 2, 3]}\n"

        async def restarted_by_jupyter() -> bool:
            status, model = await server.request("GET", f"{API}/kernels/{other.kernel_id}")
            return bool(status == 200 and model["agent"] and model["pid"] != kernel["pid"])

        await until(restarted_by_jupyter)
        await server.end(other)

    run(look())


def test_a_snapshot_is_listed_restored_and_deleted(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        taken = await server.do(notebook, "snapshot", {"name": "first one"})
        assert taken["state"] == "done", taken
        snapshot_id = taken["result"]["snapshot_id"]
        assert "kept" in {v["name"] for v in taken["result"]["variables"]}
        listed = {s["id"]: s for s in await server.get(f"{API}/snapshots")}
        assert listed[snapshot_id]["name"] == "first one"
        assert listed[snapshot_id]["notebook"] == "folder.ipynb"
        by_name = await server.get(f"{API}/snapshots/first%20one")
        assert by_name == await server.get(f"{API}/snapshots/{snapshot_id}")

        await notebook.run("kept = None")
        restored = await server.do(notebook, "restore", {"snapshot": "first one"})
        assert restored["state"] == "done", restored
        assert (await notebook.run("print(kept)")).text == "{'a': [1, 2, 3]}\n"

        status, nothing = await server.request("DELETE", f"{API}/snapshots/{snapshot_id}")
        assert (status, nothing) == (204, None)
        assert snapshot_id not in {s["id"] for s in await server.get(f"{API}/snapshots")}
        status, model = await server.request("DELETE", f"{API}/snapshots/{snapshot_id}")
        assert status == 404
        assert snapshot_id in model["message"]

    run(look())


def test_an_altered_snapshot_is_refused_and_nothing_of_it_arrives(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        await notebook.run("kept = {'a': [1, 2, 3]}")
        taken = await server.do(notebook, "snapshot", {"name": "altered"})
        snapshot_id = taken["result"]["snapshot_id"]
        found = list(server.folder.rglob(f"{snapshot_id}.json"))
        assert len(found) == 1
        document = json.loads(found[0].read_bytes())
        document["manifest"]["name"] = "harmless"
        found[0].write_text(json.dumps(document))
        await notebook.run("kept = 'mine'")
        refused = await server.do(notebook, "restore", {"snapshot": snapshot_id})
        assert (refused["state"], refused["status"]) == ("failed", 422)
        assert refused["code"] == "snapshot_signature"
        assert (await notebook.run("print(kept)")).text == "mine\n"
        await server.request("DELETE", f"{API}/snapshots/{snapshot_id}")
        await notebook.run("kept = {'a': [1, 2, 3]}")

    run(look())


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"manifest": {"name": 3}}'])
def test_a_damaged_snapshot_is_named_and_can_be_deleted(
    server: TestServer, run: Run[Any], notebook: Notebook, content: str
) -> None:
    async def look() -> None:
        taken = await server.do(notebook, "snapshot", {"name": "damaged"})
        snapshot_id = taken["result"]["snapshot_id"]
        (file,) = server.folder.rglob(f"{snapshot_id}.json")
        file.write_text(content)
        status, model = await server.request("GET", f"{API}/snapshots/{snapshot_id}")
        assert (status, model["reason"]) == (422, "snapshot_damaged")
        assert snapshot_id in model["message"]
        assert snapshot_id not in {s["id"] for s in await server.get(f"{API}/snapshots")}
        refused = await server.do(notebook, "restore", {"snapshot": snapshot_id})
        assert (refused["state"], refused["status"] >= 400) == ("failed", True)
        assert refused["code"] in {"snapshot_damaged", "snapshot_signature"}
        assert (await notebook.run("print(kept)")).text == "{'a': [1, 2, 3]}\n"
        status, _ = await server.request("DELETE", f"{API}/snapshots/{snapshot_id}")
        assert status == 204

    run(look())


def test_of_two_migrations_at_once_one_is_refused_and_the_other_moves_the_kernel(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        path = f"{API}/kernels/{notebook.kernel_id}"
        before = await server.get(path)
        answers = await asyncio.gather(*(server.request("POST", f"{path}/migrate") for _ in "ab"))
        assert sorted(status for status, _ in answers) == [202, 409]
        (started,) = (m for status, m in answers if status == 202)
        (refused,) = (m for status, m in answers if status == 409)
        check_error(refused)
        assert (refused["reason"], started["id"] in refused["message"]) == ("conflict", True)
        status, model = await server.request("POST", f"{path}/snapshot", {})
        assert (status, model["reason"]) == (409, "conflict")
        ended = await server.operation(started)
        assert ended["state"] == "done", ended
        after = await server.get(path)
        assert after["lease"]["gpu_uuid"] == ended["result"]["gpu_uuid"]
        assert after["lease"]["gpu_uuid"] != before["lease"]["gpu_uuid"]
        assert after["pid"] != before["pid"]
        assert (await notebook.run("print(kept)")).text == "{'a': [1, 2, 3]}\n"

    run(look())


def test_a_policy_is_changed_in_force_and_as_a_whole(server: TestServer, run: Run[Any]) -> None:
    async def look() -> None:
        before = await server.get(f"{API}/policy")
        status, changed = await server.request(
            "PUT", f"{API}/policy", {"grace_period_s": 2, "prebind": False}
        )
        assert status == 200
        assert changed == {**before, "grace_period_s": 2, "prebind": False}
        assert await server.get(f"{API}/policy") == changed

        async def in_force() -> bool:
            plan = await server.get(f"{API}/plan")
            return bool(plan["view"] and plan["view"]["settings"] == changed)

        assert await until(in_force)
        status, _ = await server.request(
            "PUT", f"{API}/policy", {"grace_period_s": 3, "max_duty": 1.5}
        )
        assert status == 400
        assert await server.get(f"{API}/policy") == changed
        await server.request("PUT", f"{API}/policy", before)

    run(look())
