"""Claims, reclaims and binds over REST, on kernels that hold memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from border import API
from live_server import Run, TestServer, until

from jupyter_gpu_predict.demo.client import Notebook

MIB = 1 << 20
HELD = 300 * MIB
FILL = f"import torch; x = torch.ones({HELD // 4})"
LARGE = 400 * MIB
"""More than is free beside `HELD` on a GPU of 512 MiB."""


@pytest.fixture(scope="module")
def holders(server: TestServer, run: Run[Any]) -> Iterator[list[Notebook]]:
    """Two kernels, each with most of a GPU of its own."""

    async def fill() -> list[Notebook]:
        notebooks = [await server.opened() for _ in range(2)]
        for notebook in notebooks:
            assert (await notebook.run(FILL)).status == "ok"

        async def spread() -> bool:
            leases = [(await server.kernel(n))["lease"] for n in notebooks]
            gpus = {x["gpu_uuid"] for x in leases if x["bytes"] >= HELD}
            return gpus == {"SIM-GPU-0", "SIM-GPU-1"}

        await until(spread)
        return notebooks

    notebooks = run(fill())
    yield notebooks
    for notebook in notebooks:
        run(server.end(notebook))


@pytest.fixture(scope="module", autouse=True)
def short_grace(server: TestServer, run: Run[Any]) -> Iterator[None]:
    before = run(server.get(f"{API}/policy"))
    status, _ = run(server.request("PUT", f"{API}/policy", {"grace_period_s": 1, "prebind": False}))
    assert status == 200
    yield
    run(server.request("PUT", f"{API}/policy", before))


@pytest.fixture
def pinned(server: TestServer, run: Run[Any], holders: list[Notebook]) -> Iterator[list[Notebook]]:
    """The holders, on their GPUs and pinned."""

    async def pin() -> None:
        for notebook in holders:
            bound = await server.do(notebook, "bind")
            assert bound["state"] == "done", bound
            await server.post(f"{API}/kernels/{notebook.kernel_id}/pin")

    run(pin())
    yield holders
    for notebook in holders:
        run(server.post(f"{API}/kernels/{notebook.kernel_id}/unpin"))


@pytest.fixture
def claimant(server: TestServer, run: Run[Any]) -> Iterator[Notebook]:
    notebook: Notebook = run(server.opened())
    yield notebook
    run(server.end(notebook))


async def start_waiting(server: TestServer, notebook: Notebook, **claim: Any) -> dict[str, Any]:
    """Make a claim and see it wait."""
    path = f"{API}/kernels/{notebook.kernel_id}"
    started: dict[str, Any] = await server.post(f"{path}/claim", {"bytes": LARGE, **claim})
    assert (started["kind"], started["state"]) == ("claim", "running")

    async def queued() -> Any:
        # The last plan may still be one of before, with a claim of a kernel that is gone.
        actions = (await server.get(f"{API}/plan"))["plan"]["actions"]
        return [
            a for a in actions if a["action"] == "Queue" and a["kernel_id"] == notebook.kernel_id
        ]

    (place,) = await until(queued)
    kernel = await server.get(path)
    (waiting,) = kernel["waiting"]
    assert (waiting["bytes"], waiting["origin"]) == (LARGE, "rest")
    assert (place["claim_id"], place["position"]) == (waiting["claim_id"], 1)
    assert "400 MiB" in place["reason"]
    assert kernel["operation"] == started["id"]
    return started


def test_a_claim_that_fits_is_granted_as_it_was_stated(
    server: TestServer, run: Run[Any], claimant: Notebook
) -> None:
    async def look() -> None:
        claim = {"bytes": 100 * MIB, "priority": "low", "affinity": "sim-gpu-1", "critical": True}
        ended = await server.do(claimant, "claim", claim)
        assert (ended["state"], ended["progress"]) == ("done", 1.0)
        lease = ended["result"]["lease"]
        assert (lease["state"], lease["bytes"]) == ("bound", 100 * MIB)
        assert lease["gpu_uuid"] == "SIM-GPU-1"
        kernel = await server.kernel(claimant)
        assert (kernel["waiting"], kernel["operation"], kernel["priority"]) == ([], None, -1)
        assert "100 MiB" in kernel["last_decision"]["reason"]

    run(look())


def test_a_pin_keeps_memory_from_a_claim_until_it_is_taken_off(
    server: TestServer, run: Run[Any], pinned: list[Notebook], claimant: Notebook
) -> None:
    async def look() -> None:
        started = await start_waiting(server, claimant)
        for notebook in pinned:
            assert (await server.kernel(notebook))["state"] == "bound"
        await server.post(f"{API}/kernels/{pinned[0].kernel_id}/unpin")
        ended = await server.operation(started)
        assert ended["state"] == "done", ended
        given, kept = [await server.kernel(n) for n in pinned]
        assert (given["state"], given["suspended_bytes"], given["used_bytes"]) == (
            "suspended",
            HELD,
            0,
        )
        assert claimant.kernel_id[:8] in given["last_decision"]["reason"]
        assert (kept["state"], kept["used_bytes"]) == ("bound", HELD)
        assert (await pinned[0].run("print(int(x.sum()))")).text == f"{HELD // 4}\n"

    run(look())


def test_a_claim_past_its_deadline_fails_and_says_so(
    server: TestServer, run: Run[Any], pinned: list[Notebook], claimant: Notebook
) -> None:
    async def look() -> None:
        before = await server.kernel(claimant)
        ended = await server.do(claimant, "claim", {"bytes": LARGE, "deadline_s": 1})
        assert (ended["state"], ended["code"], ended["status"]) == ("failed", "conflict", 409)
        # It says how long was waited, and a slow machine looks late.
        assert re.search(r"no 400 MiB came free in [1-9]\d* s", ended["error"])
        assert ended["ended_s"] - ended["started_s"] >= 1
        after = await server.kernel(claimant)
        assert (after["lease"], after["waiting"], after["operation"]) == (before["lease"], [], None)

    run(look())


def test_a_kernel_has_one_claim_at_a_time_and_can_be_saved_meanwhile(
    server: TestServer, run: Run[Any], pinned: list[Notebook], claimant: Notebook
) -> None:
    async def look() -> None:
        started = await start_waiting(server, claimant, deadline_s=60)
        for kind, body in (
            ("claim", {"bytes": 1}),
            ("bind", {}),
        ):
            path = f"{API}/kernels/{claimant.kernel_id}/{kind}"
            status, model = await server.request("POST", path, body)
            assert (status, model["reason"]) == (409, "conflict")
            assert started["id"] in model["message"]
        assert len((await server.kernel(claimant))["waiting"]) == 1
        assert (await server.do(claimant, "snapshot"))["state"] == "done"
        await server.end(claimant)
        ended = await server.operation(started)
        assert (ended["state"], ended["code"]) == ("failed", "conflict")
        assert "ended" in ended["error"]

    run(look())


def test_a_busy_kernel_is_not_suspended_and_the_reason_is_said(
    server: TestServer, run: Run[Any], holders: list[Notebook], tmp_path: Path
) -> None:
    async def look() -> None:
        notebook, go_on = holders[1], tmp_path / "go on"
        await server.do(notebook, "bind")
        waits = f"import os, time\nwhile not os.path.exists({str(go_on)!r}): time.sleep(0.05)"
        cell = await notebook.start(f"{waits}\nprint(int(x.sum()))")

        async def busy() -> bool:
            return bool((await server.kernel(notebook))["busy"])

        await until(busy)
        ended = await server.do(notebook, "reclaim")
        assert (ended["state"], ended["code"], ended["status"]) == ("failed", "refused", 409)
        assert "is running a cell" in ended["error"]
        assert (await server.kernel(notebook))["state"] == "bound"
        path = f"{API}/kernels/{notebook.kernel_id}/reclaim"
        waiting = await server.post(path, {"wait": True})
        assert waiting["state"] == "running"
        go_on.touch()
        waited = await server.operation(waiting)
        assert waited["state"] == "done", waited
        assert (await notebook.finish(cell)).text == f"{HELD // 4}\n"
        assert (await server.kernel(notebook))["state"] == "suspended"

    run(look())


def test_reclaim_frees_memory_and_bind_brings_it_back(
    server: TestServer, run: Run[Any], holders: list[Notebook]
) -> None:
    async def look() -> None:
        notebook = holders[0]
        assert (await server.do(notebook, "bind"))["state"] == "done"
        bound = await server.kernel(notebook)
        taken = await server.do(notebook, "reclaim")
        assert (taken["state"], taken["result"]["freed_bytes"]) == ("done", HELD)
        suspended = await server.kernel(notebook)
        assert (suspended["state"], suspended["suspended_bytes"]) == ("suspended", HELD)
        assert suspended["lease"]["held_bytes"] == 0
        assert suspended["lease"]["epoch"] > bound["lease"]["epoch"]

        path = f"{API}/kernels/{notebook.kernel_id}/reclaim"
        status, model = await server.request("POST", path)
        assert (status, model["reason"]) == (409, "conflict")

        back = await server.do(notebook, "bind")
        assert back["state"] == "done", back
        kernel = await server.kernel(notebook)
        assert (kernel["state"], kernel["used_bytes"], kernel["suspended_bytes"]) == (
            "bound",
            HELD,
            0,
        )
        assert kernel["lease"]["epoch"] > suspended["lease"]["epoch"]
        assert (await notebook.run("print(int(x.sum()))")).text == f"{HELD // 4}\n"

    run(look())


def test_a_claim_is_granted_when_another_kernel_ends(
    server: TestServer, run: Run[Any], pinned: list[Notebook], claimant: Notebook
) -> None:
    async def look() -> None:
        started = await start_waiting(server, claimant)
        await asyncio.gather(server.end(pinned[1]), server.operation(started))
        ended = await server.operation(started)
        assert ended["state"] == "done", ended
        assert (await server.kernel(pinned[0]))["state"] == "bound"
        # The module's other tests find two holders again, whatever their order.
        pinned[1] = await server.opened(code=FILL)

    run(look())
