"""What happens is told as Jupyter events and counted at `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from border import API, token
from live_server import Run, TestServer, until
from prometheus_client.parser import text_string_to_metric_families
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from jupyter_gpu_predict.demo.client import Notebook
from jupyter_gpu_predict.server.events import SCHEMA_ID

MIB = 1 << 20
HELD = 64 * MIB


@pytest.fixture(scope="module")
def notebook(server: TestServer, run: Run[Any]) -> Iterator[Notebook]:
    notebook: Notebook = run(server.opened(code="import torch"))
    yield notebook
    run(server.end(notebook))


@contextlib.asynccontextmanager
async def subscribed(server: TestServer) -> AsyncIterator[list[dict[str, Any]]]:
    """Gather the events that the server emits while the block runs."""
    url = server.url.replace("http", "ws", 1) + "api/events/subscribe"
    socket = await websocket_connect(HTTPRequest(url, headers=token(server)))
    events: list[dict[str, Any]] = []

    async def read() -> None:
        while (raw := await socket.read_message()) is not None:
            event = json.loads(raw)
            if event["schema_id"] == SCHEMA_ID:
                events.append(event)

    reader = asyncio.ensure_future(read())
    try:
        yield events
    finally:
        socket.close()
        await asyncio.wait_for(reader, 60)


async def metrics(server: TestServer) -> dict[tuple[str, frozenset[Any]], float]:
    """Return our samples by name and labels."""
    _, text = await server.request("GET", "metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("jupyter_gpu_")
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[Any]]:
    return f"jupyter_gpu_{name}", frozenset(labels.items())


def test_subscribers_hear_of_cells_grants_reclaims_and_pins_in_order(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        async with subscribed(server) as events:

            def heard(kind: str) -> list[dict[str, Any]]:
                return [
                    e
                    for e in events
                    if e["kind"] == kind and e.get("kernel_id") == notebook.kernel_id
                ]

            async def ran() -> list[dict[str, Any]]:
                return heard("cell_run")

            await notebook.run(f"x = torch.ones({HELD // 4})")
            # The server hears of the cell's end by a socket of its own.
            await until(ran)
            await server.do(notebook, "claim", {"bytes": 2 * HELD})
            await server.do(notebook, "reclaim", {"wait": True})
            await server.post(f"{API}/kernels/{notebook.kernel_id}/pin")
            await server.post(f"{API}/kernels/{notebook.kernel_id}/unpin")
            await notebook.run("x.sum()")

            async def all_of_it() -> bool:
                return bool(heard("restored")) and len(heard("cell_run")) >= 2

            await until(all_of_it)
            (reclaimed,) = heard("reclaimed")
            assert (reclaimed["bytes"], reclaimed["resident_bytes"]) == (HELD, 0)
            assert reclaimed["reason"]
            granted = heard("bound")
            assert (granted[0]["bytes"], granted[0]["origin"]) == (2 * HELD, "rest")
            assert granted[0]["reason"]
            assert max(e["peak_bytes"] for e in heard("cell_run")) >= HELD
            assert {e["outcome"] for e in heard("cell_run")} == {"ok"}
            assert len(heard("pinned")) == len(heard("unpinned")) == 1
            kinds = [e["kind"] for e in events if e.get("kernel_id") == notebook.kernel_id]
            order = ("cell_run", "claim", "bound", "reclaimed", "pinned", "unpinned", "restored")
            assert sorted(order, key=kinds.index) == list(order)
            times = [e["t_s"] for e in events]
            assert times == sorted(times)

    run(look())


def test_subscribers_hear_of_each_operation_from_its_start_to_its_end(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        async with subscribed(server) as events:
            ended = await server.do(notebook, "snapshot", {"name": "told"})

            async def told() -> list[dict[str, Any]]:
                own = [e for e in events if e.get("operation_id") == ended["id"]]
                return own if own and own[-1]["state"] == "done" else []

            first, *_, last = await until(told)
            assert (first["kind"], first["operation"]) == ("operation", "snapshot")
            assert (first["state"], first["progress"]) == ("running", 0.0)
            assert (last["progress"], last["kernel_id"]) == (1.0, notebook.kernel_id)
            assert last["done_bytes"] == last["total_bytes"] == ended["total_bytes"] > 0

    run(look())


def test_metrics_show_memory_leases_risk_and_what_happened(
    server: TestServer, run: Run[Any], notebook: Notebook
) -> None:
    async def look() -> None:
        await notebook.run(f"x = torch.ones({HELD // 4})")
        await server.do(notebook, "bind")
        gpu = (await server.kernel(notebook))["lease"]["gpu_uuid"]
        before = await metrics(server)
        reclaimed = key("events_total", kind="reclaimed")
        assert before[key("memory_bytes", gpu=gpu, kind="total")] == 512 * MIB
        assert before[key("memory_bytes", gpu=gpu, kind="held")] >= HELD
        assert key("leases", state="suspended") not in before
        assert before[key("claims_waiting")] == 0
        assert {v for (n, _), v in before.items() if n == "jupyter_gpu_risk"} == {0}

        await server.do(notebook, "reclaim", {"wait": True})
        after = await metrics(server)
        assert after[reclaimed] == before[reclaimed] + 1
        assert after[key("leases", state="suspended")] == 1
        assert after[key("memory_bytes", gpu=gpu, kind="held")] == 0

        async def read_anew() -> bool:
            return (await metrics(server))[key("memory_bytes", gpu=gpu, kind="used")] == 0

        await until(read_anew)
        await notebook.run("x.sum()")

    run(look())


@pytest.fixture
def gpu(server: TestServer, run: Run[Any]) -> Iterator[str]:
    """A GPU that is sound again afterwards."""
    gpu = "SIM-GPU-1"
    yield gpu
    run(server.post(f"{API}/gpus/{gpu}/health", {"ecc_uncontained": 0}))
    run(server.post(f"{API}/gpus/{gpu}/uncordon"))


def test_the_risk_of_a_gpu_is_told_and_shown(server: TestServer, run: Run[Any], gpu: str) -> None:
    async def look() -> None:
        async with subscribed(server) as events:
            await server.post(f"{API}/gpus/{gpu}/health", {"ecc_uncontained": 1})

            async def told() -> list[dict[str, Any]]:
                return [e for e in events if e["kind"] == "risk" and e["gpu_uuid"] == gpu]

            assert (await until(told))[0]["level"] == "critical"
            assert (await metrics(server))[key("risk", gpu=gpu)] == 2
            (model,) = [m for m in (await server.get(f"{API}/gpus"))["gpus"] if m["uuid"] == gpu]
            assert model["risk"]["evidence"]

            async def cordoned() -> list[dict[str, Any]]:
                return [e for e in events if e["kind"] == "cordoned" and e["gpu_uuid"] == gpu]

            await until(cordoned)
            await server.post(f"{API}/gpus/{gpu}/health", {"ecc_uncontained": 0})
            await server.post(f"{API}/gpus/{gpu}/uncordon")

            async def sound() -> bool:
                return (await metrics(server))[key("risk", gpu=gpu)] == 0

            await until(sound)

    run(look())
