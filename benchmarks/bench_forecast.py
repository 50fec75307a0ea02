"""Lag of the event loop and cost while 20 kernels are forecast.

A ticker wakes every 10 ms and notes how late it is: in an idle loop, while the worker process
forecasts 20 active kernels again and again, with records encoded in this process as a server does
it, and while it does so with their notebooks, each of 200 code cells with 2 MB of outputs, saved
anew for each forecast. The phases take turns, so that a busy machine burdens all alike. With
``--data DIR`` the models are also scored on series of public traces (rolling origins, pinball
loss of quantiles 0.1/0.5/0.9 in units of the series' scale, coverage of the 80 % interval).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import json
import logging
import random
import resource
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.table import Table

from jupyter_gpu_predict.control.forecasting import ForecastWorker
from jupyter_gpu_predict.control.records import KernelRecord
from jupyter_gpu_predict.control.situations import Situations
from jupyter_gpu_predict.core.forecast.backtest import score
from jupyter_gpu_predict.core.forecast.selection import default_models
from jupyter_gpu_predict.core.model import STEP_S, CellRun, DemandSample, Outcome
from jupyter_gpu_predict.core.trace.quantile import quantile
from jupyter_gpu_predict.core.trace.series import DemandSeries
from jupyter_gpu_predict.server.documents import Documents

KERNELS = 20
CELLS = 200
SOURCE = "x_{0} = {1}\nfor i in range(3):\n    x_{0} = model(x_{0}).to(device)\nprint(x_{0})"
TICK_S = 0.01
GIB = 1 << 30


@dataclass
class Kernel:
    """A kernel of generated bursts that goes on while it is measured."""

    name: str
    seed: int
    now_s: float = 1_700_000_000.0
    edits: int = 0
    samples: list[DemandSample] = field(default_factory=list)
    runs: list[CellRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def live(self, span_s: float) -> None:
        """Let `span_s` seconds pass: bursts with a sample each second, idle time between them."""
        end_s = self.now_s + span_s
        while self.now_s < end_s:
            idle_s = self.chance.expovariate(1 / 30)
            burst_s = min(self.chance.expovariate(1 / 20), 120.0)
            peak = self.chance.choice((0, 1, 2, 4, 8)) * GIB
            start_s = self.now_s + idle_s
            for second in range(int(burst_s)):
                used = int(peak * self.chance.uniform(0.5, 1))
                self.samples.append(DemandSample(self.name, start_s + second, used, 0, True))
            self.now_s = start_s + burst_s
            self.samples.append(DemandSample(self.name, self.now_s, peak // 2, 0, False))
            self.runs.append(
                CellRun(
                    self.name,
                    f"{self.name}.ipynb",
                    f"c{len(self.runs) % CELLS}",
                    f"{peak:032x}",
                    start_s,
                    self.now_s,
                    peak,
                    peak // 2,
                    "torch.cuda",
                    0,
                    burst_s,
                    Outcome.OK,
                )
            )

    def saved(self) -> str:
        """Return its notebook's file; each time one cell has changed."""
        self.edits += 1
        changed = self.edits % CELLS
        cells = [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "source": SOURCE.format(i, self.edits if i == changed else 0),
                "outputs": [{"data": {"image/png": "A" * 10_000}}],
            }
            for i in range(CELLS)
        ]
        return json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5})

    def record(self) -> KernelRecord:
        """Return it as a server knows it."""
        port: Any = None
        record = KernelRecord(self.name, "python3", f"{self.name}.ipynb", port, 0.0)
        record.runs.extend(self.runs)
        record.last_used_s = self.now_s
        return record


class Notebooks:
    """The managers of a server whose notebooks are the texts given."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.contents_manager = self.session_manager = self
        self.saves = 0

    async def get_session(self, kernel_id: str, **_: Any) -> dict[str, Any]:
        """Return a kernel's session."""
        return {"path": f"{kernel_id}.ipynb"}

    async def get(self, path: str, content: bool = True, **_: Any) -> dict[str, Any]:
        """Return a notebook's file."""
        text = self.texts[path.removesuffix(".ipynb")]
        return {"last_modified": self.saves, "size": len(text), "content": text}


async def ticker(lags_s: list[float], stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    while not stop.is_set():
        due_s = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        lags_s.append(loop.time() - due_s)


def own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def lag_rows(history_s: float, rounds: int) -> list[dict[str, Any]]:
    kernels = [Kernel(f"kernel-{i}", i) for i in range(KERNELS)]
    for kernel in kernels:
        kernel.live(history_s)
    worker = ForecastWorker(timeout_s=60)
    notebooks = Notebooks()
    store = SimpleNamespace(cell_runs=lambda **_: [])
    loop: Any = SimpleNamespace(notebooks=None, store=store)
    situations = Situations(loop)
    phases = ("20 kernels", "20 kernels, notebooks")
    lags: dict[str, list[float]] = {"idle loop": [], **{phase: [] for phase in phases}}
    served: Counter[str] = Counter()
    cost: dict[str, list[float]] = {"scored": [], "kept": []}
    waits_s: dict[str, list[float]] = {phase: [] for phase in phases}
    server_cpu_s = dict.fromkeys(phases, 0.0)
    busy_s = dict.fromkeys(phases, 0.0)
    idle_cpu_s = idle_s = 0.0
    try:
        first = kernels[0]
        began_s = time.perf_counter()
        await worker.refresh("warm-up", [], [], [], "none", first.now_s)
        start_s = time.perf_counter() - began_s

        async def refresh(kernel: Kernel, phase: str) -> None:
            asked_s = time.perf_counter()
            situation = None
            if phase == phases[1]:
                situation = (await situations.of(kernel.record(), kernel.now_s)).situation
            found = await worker.refresh(
                kernel.name,
                kernel.samples,
                kernel.runs,
                [],
                "kernel",
                kernel.now_s,
                situation,
            )
            waits_s[phase].append(time.perf_counter() - asked_s)
            served[f"{found.model}, P(needed) by {found.need_model}"] += 1
            details = worker.details(kernel.name)
            assert details is not None
            cost["scored" if details.scored else "kept"].append(details.cpu_s)

        for number in range(rounds):
            for phase in phases:
                if phase == phases[1]:
                    notebooks.saves += 1
                    notebooks.texts = {kernel.name: kernel.saved() for kernel in kernels}
                    loop.notebooks = Documents(notebooks)
                stop = asyncio.Event()
                ticking = asyncio.create_task(ticker(lags[phase], stop))
                began_s, before_s = time.perf_counter(), own_cpu_s()
                await asyncio.gather(*(refresh(kernel, phase) for kernel in kernels))
                spent_s = time.perf_counter() - began_s
                server_cpu_s[phase] += own_cpu_s() - before_s
                busy_s[phase] += spent_s
                stop.set()
                await ticking
            stop = asyncio.Event()
            ticking = asyncio.create_task(ticker(lags["idle loop"], stop))
            began_s, before_s = time.perf_counter(), own_cpu_s()
            await asyncio.sleep(max(1.0, min(spent_s, 4.0)))
            idle_cpu_s += own_cpu_s() - before_s
            idle_s += time.perf_counter() - began_s
            stop.set()
            await ticking
            for kernel in kernels:
                # Every other round so little that the last backtest still holds.
                if number % 2:
                    kernel.live(40)
    finally:
        await worker.close()
    rows = []
    for method, found in lags.items():
        ordered = sorted(1000 * lag for lag in found)
        for metric, value in (
            ("median", quantile(ordered, 0.5)),
            ("p95", quantile(ordered, 0.95)),
            ("max", ordered[-1]),
        ):
            rows.append(row("event-loop lag", method, metric, value, "ms"))
    for method, name in (("scored", "with backtest"), ("kept", "backtest kept")):
        spent = sorted(1000 * value for value in cost[method])
        if spent:
            rows.append(row("worker cpu per refresh", name, "median", quantile(spent, 0.5), "ms"))
            rows.append(row("worker cpu per refresh", name, "max", spent[-1], "ms"))
    refreshes = sum(map(len, waits_s.values()))
    for phase in phases:
        # The ticker's own share is taken out.
        own_s = server_cpu_s[phase] - idle_cpu_s * busy_s[phase] / idle_s
        ordered = sorted(waits_s[phase])
        rows += [
            row("server cpu per refresh", phase, "mean", 1000 * own_s / len(ordered), "ms"),
            row("answer of one of 20", phase, "median", quantile(ordered, 0.5), "s"),
            row("answer of one of 20", phase, "max", ordered[-1], "s"),
        ]
    rows += [
        row("worker start", "all", "wall", start_s, "s"),
        row("refreshes", "all", "count", refreshes, ""),
    ]
    rows += [row("served", model, "count", count, "") for model, count in served.items()]
    return rows


def row(case: str, method: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"case": case, "method": method, "metric": metric, "value": value, "unit": unit}


def opened(folder: Path, name: str) -> list[dict[str, str]]:
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        raise SystemExit(f"{folder}: no {name} in it; give the folder of the traces by --data")
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def traced(folder: Path, count: int) -> Iterator[tuple[str, DemandSeries]]:
    """Yield series of memory or GPU counts from public traces.

    Pods: memory of GPU pods each 57 s. Bursts: GPUs in use by a notebook session, by minute. One
    record is one step here, so the horizons are steps of the traces' own grain.
    """
    pods: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in opened(folder, "gentd26_pod_gpu.csv.gz"):
        if record["mem_mib"]:
            pods[record["pod"]].append((float(record["t_s"]), float(record["mem_mib"])))
    changing = [
        series for series in pods.values() if len(series) > 600 and len({m for _, m in series}) > 20
    ]
    for records in changing[:count]:
        memory = tuple(value for _, value in sorted(records))[:1000]
        yield "pod memory", DemandSeries(0, STEP_S, memory, tuple(int(m > 0) for m in memory))
    sessions: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for record in opened(folder, "adobe_june2021_events.csv.gz"):
        sessions[record["session"]].append(
            (int(record["start_min"]), int(record["dur_min"]), float(record["num_gpu"]))
        )
    busiest = sorted(sessions.values(), key=len, reverse=True)
    for bursts in busiest[:count]:
        begin = min(start for start, _, _ in bursts)
        used = [0.0] * 1000
        for start, length, gpus in bursts:
            for minute in range(start - begin, min(start - begin + length, len(used))):
                used[minute] = max(used[minute], gpus)
        yield (
            "notebook bursts",
            DemandSeries(0, STEP_S, tuple(used), tuple(int(u > 0) for u in used)),
        )


def accuracy_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    logging.getLogger("cmdstanpy").disabled = True
    warnings.filterwarnings("ignore", module="prophet")
    warnings.filterwarnings("ignore", message="The inplace keyword")
    losses: dict[tuple[str, str], list[tuple[float, float, float]]] = defaultdict(list)
    for case, series in traced(folder, count):
        origins = tuple(range(len(series) // 2, len(series) - 60, len(series) // 12))
        scored = score(series, default_models(), origins).backtests
        for found in scored:
            losses[case, found.model].append((found.pinball, found.coverage, found.brier))
    rows = []
    for (case, model), found in losses.items():
        for i, metric in enumerate(("pinball", "coverage", "brier")):
            value = sum(scores[i] for scores in found) / len(found)
            rows.append(row(f"{case}, {len(found)} series", model, metric, value, ""))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="end within 45 s on 2 cores")
    parser.add_argument("--data", type=Path, help="folder of public traces to score the models on")
    options = parser.parse_args()
    rows = asyncio.run(lag_rows(600 if options.quick else 5000, 2 if options.quick else 6))
    if options.data:
        rows += accuracy_rows(options.data, 4 if options.quick else 12)
    table = Table(title="Forecasting")
    for name in ("case", "method", "metric"):
        table.add_column(name)
    table.add_column("value", justify="right")
    table.add_column("unit")
    for r in rows:
        shown = f"{r['value']:.4g}"
        table.add_row(r["case"], r["method"], r["metric"], shown, r["unit"])
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
