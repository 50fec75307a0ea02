"""What the extension and its agent add to a trivial cell and to a kernel's start.

Two real servers run side by side, one with the extension and one without. Cells and starts are
taken in turn from one and the other, the first of each pair alternating, so that whatever else the
machine does meets both. A cell is timed from its request to the later of its reply and "idle", over
the websocket; a start from the request for a session to the end of its first cell.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jupyter_gpu_predict.demo.client import Notebook, ServerProcess

CELL = "1 + 1"
TENSORS = "import torch; kept = [torch.zeros(8) for _ in range(10_000)]"
WARM_UP = 20
LIMITS_MS = {"cell": 1.0, "start": 150.0}
PLAIN, AGENT = "plain", "with agent"


@dataclass(frozen=True)
class Row:
    """One measured figure."""

    case: str
    method: str
    metric: str
    value: float
    unit: str


def rows_of(case: str, plain: Sequence[float], agent: Sequence[float]) -> list[Row]:
    """Return the figures of one case from paired times in seconds."""
    found = []
    for method, times in ((PLAIN, plain), (AGENT, agent)):
        milliseconds = sorted(t * 1e3 for t in times)
        p95 = milliseconds[math.ceil(0.95 * (len(milliseconds) - 1))]
        found.append(Row(case, method, "median", statistics.median(milliseconds), "ms"))
        found.append(Row(case, method, "p95", p95, "ms"))
    found.append(Row(case, "added", "median_difference", found[2].value - found[0].value, "ms"))
    pairs = [(b - a) * 1e3 for a, b in zip(plain, agent, strict=True)]
    found.append(Row(case, "added", "paired_median", statistics.median(pairs), "ms"))
    found.append(Row(case, "pairs", "count", len(pairs), ""))
    return found


async def in_turn(
    works: Sequence[Callable[[], Awaitable[float]]], count: int
) -> tuple[list[float], ...]:
    """Take `count` times of each work, in turn, the first one alternating."""
    times: tuple[list[float], ...] = tuple([] for _ in works)
    order = list(range(len(works)))
    for _ in range(count):
        for i in order:
            times[i].append(await works[i]())
        order.reverse()
    return times


async def one_cell(notebook: Notebook, code: str = CELL) -> float:
    began = time.perf_counter()
    execution = await notebook.run(code)
    elapsed = time.perf_counter() - began
    if execution.status != "ok":
        raise RuntimeError(f"{code!r} ended with {execution.status}: {execution.text}")
    notebook.executions.clear()
    return elapsed


async def opened(server: ServerProcess, path: str) -> Notebook:
    """Open a notebook whose socket acknowledges at once.

    The server's websockets keep Nagle's algorithm on, so a delayed acknowledgement holds the second
    message of each cell for 40 ms: far more than what is measured here, and in steps of its own.
    """
    notebook = await server.open(path)
    websocket = notebook._socket
    wire = websocket.protocol.stream.socket
    read_message = websocket.read_message

    async def read_at_once() -> str | bytes | None:
        message = await read_message()
        if message is not None:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return message

    websocket.read_message = read_at_once
    return notebook


async def one_start(server: ServerProcess) -> float:
    began = time.perf_counter()
    notebook = await opened(server, "start.ipynb")
    await one_cell(notebook)
    elapsed = time.perf_counter() - began
    await notebook.close()
    for session in await server.get("api/sessions"):
        await server.request("DELETE", f"api/sessions/{session['id']}")
    return elapsed


async def measure(servers: Sequence[ServerProcess], cells: int, starts: int) -> list[Row]:
    plain, agent = servers
    await in_turn([lambda: one_start(plain), lambda: one_start(agent)], 1)
    started = await in_turn([lambda: one_start(plain), lambda: one_start(agent)], starts)
    rows = rows_of("start", *started)
    notebooks = [await opened(server, "cells.ipynb") for server in servers]
    works = [lambda n=n: one_cell(n) for n in notebooks]
    await in_turn(works, WARM_UP)
    rows += rows_of("cell", *await in_turn(works, cells))
    if importlib.util.find_spec("torch"):
        for notebook in notebooks:
            await one_cell(notebook, TENSORS)
        await in_turn(works, WARM_UP)
        rows += rows_of("cell, 10,000 tensors", *await in_turn(works, cells))
    for notebook in notebooks:
        await notebook.close()
    return rows


async def run(cells: int, starts: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="cell-overhead-") as name:
        servers = []
        for method in (PLAIN, AGENT):
            folder = Path(name, method.replace(" ", "-"))
            (folder / "root").mkdir(parents=True)
            options = {"GpuPredict.device_backend": "simulated"} if method is AGENT else {}
            servers.append(
                ServerProcess(
                    folder, root=folder / "root", options=options, extension=method is AGENT
                )
            )
        try:
            for server in servers:
                server.start()
            for server in servers:
                await server.ready()
            return await measure(servers, cells, starts)
        finally:
            for server in servers:
                await server.stop()


def show(rows: Sequence[Row]) -> None:
    table = Table(title="What the agent adds (simulated GPUs)")
    names = {
        (PLAIN, "median"): "plain",
        (AGENT, "median"): "agent",
        (PLAIN, "p95"): "plain p95",
        (AGENT, "p95"): "agent p95",
        ("added", "median_difference"): "added",
        ("added", "paired_median"): "added, paired",
        ("pairs", "count"): "pairs",
    }
    table.add_column("case")
    for name in (*names.values(), "bar"):
        table.add_column(name, justify="right")
    for case in dict.fromkeys(row.case for row in rows):
        figures = {(r.method, r.metric): r for r in rows if r.case == case}
        values = [figures[key] for key in names]
        cells = [f"{r.value:.2f} {r.unit}" if r.unit else f"{r.value:g}" for r in values]
        limit = LIMITS_MS[case.partition(",")[0]]
        verdict = "met" if figures["added", "median_difference"].value <= limit else "missed"
        table.add_row(case, *cells, f"<= {limit:g} ms: {verdict}")
    Console(width=None if Console().is_terminal else 130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cells and starts")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to PATH")
    arguments = parser.parse_args()
    cells, starts = (100, 3) if arguments.quick else (1000, 9)
    rows = asyncio.run(run(cells, starts))
    show(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
