"""One measurement in this process; prints its rows as JSON behind a mark."""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from jupyter_gpu_predict.kernel import warm
from jupyter_gpu_predict.kernel.offload import Offloader, UseLog, scan
from jupyter_gpu_predict.kernel.offload.simulated import trim_heap
from reclaim_cases.plain import plain_copy
from reclaim_cases.states import STATES, variables

MARK = "reclaim-rows: "
Rows = list[dict[str, Any]]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def place(device: str) -> str:
    """Return the torch device on which a device's tensors are made."""
    return "cpu" if device == "simulated" else device


def memory_mb(device: str) -> float:
    """Return what is held: resident memory, or what the device itself counts."""
    if device == "simulated":
        with open("/proc/self/status") as f:
            return next(int(x.split()[1]) for x in f if x.startswith("VmRSS")) / 1000
    module = getattr(torch, device)
    module.empty_cache()
    free, total = module.mem_get_info()
    return float(total - free) / 1e6


def cost(device: str, case: str, nbytes: int, folder: str, turns: int) -> Rows:
    """Time suspending and restoring beside the plain copy, turn by turn.

    The least of all turns counts: whatever else the machine does only adds to it.
    """
    state = STATES[case](nbytes, place(device))
    gc.collect()
    offloader = Offloader(device, os.path.join(folder, "spill"))
    figures: dict[tuple[str, str], list[float]] = {}

    def note(method: str, **values: float) -> None:
        for metric, value in values.items():
            figures.setdefault((method, metric), []).append(value)

    def plain() -> None:
        out, back = plain_copy(device, scan(device).storages, folder)
        note("plain copy", out_s=out, back_s=back)

    def engine() -> None:
        trim_heap()
        before = memory_mb(device)
        note("reclaim", out_s=timed(offloader.suspend))
        during = memory_mb(device)
        note("reclaim", back_s=timed(offloader.restore))
        note("reclaim", before_mb=before, during_mb=during, after_mb=memory_mb(device))

    total = scan(device).used_bytes
    check = fingerprint(device)
    # Whoever touches the machine's memory first pays for it: warm up, then take turns.
    plain()
    engine()
    figures.clear()
    for turn in range(turns):
        for method in (plain, engine) if turn % 2 else (engine, plain):
            method()
            trim_heap()
    if fingerprint(device) != check:
        raise AssertionError(f"{case}: values changed")
    for way in ("out", "back"):
        ours, least = (figures[m, f"{way}_s"] for m in ("reclaim", "plain copy"))
        note("reclaim", **{f"{way}_speed": min(least) / min(ours)})
        note("reclaim", **{f"{way}_s_per_gb": min(ours) / total * 1e9})
    del state
    offloader.release()
    return [
        row(f"{case}, {total / 1e9:.2g} GB", device, method, metric, min(values))
        for (method, metric), values in figures.items()
    ]


def fingerprint(device: str) -> float:
    """Return a number that changes when any of the memory does."""
    with torch.no_grad():
        tensors = (
            torch.empty(0, dtype=torch.uint8, device=s.device).set_(s)
            for s in scan(device).storages
        )
        return float(sum(float(t[:: max(1, t.numel() // 97)].cpu().sum()) for t in tensors))


def lazy(device: str, nbytes: int, folder: str, turns: int) -> Rows:
    """Time the first cell after a restore of all, and of what it names: one variable in 100."""
    space = variables(nbytes, place(device))
    log = UseLog()
    offloader = Offloader(
        device, os.path.join(folder, "spill"), last_use=lambda: log.by_storage(space)
    )
    cell = "float(t42.sum())"
    figures: dict[str, list[float]] = {"restore of all": [], "lazy restore": [], "rest": []}

    def run() -> None:
        eval(cell, space)

    for turn in range(turns + 1):
        offloader.suspend()
        whole = timed(lambda: (offloader.restore(), run()))
        offloader.suspend()
        first = timed(lambda: (offloader.restore(log.next_values(cell, space)), run()))
        started = time.perf_counter()
        while offloader.restore_some().storages:
            pass
        rest = time.perf_counter() - started
        if turn:
            figures["restore of all"].append(whole)
            figures["lazy restore"].append(first)
            figures["rest"].append(rest)
    case = f"first cell touches 1 % of {nbytes / 1e9:.2g} GB"
    middle = {method: min(values) for method, values in figures.items()}
    return [
        row(case, device, "restore of all", "first_cell_s", middle["restore of all"]),
        row(case, device, "lazy restore", "first_cell_s", middle["lazy restore"]),
        row(case, device, "lazy restore", "rest_between_cells_s", middle["rest"]),
        row(
            case,
            device,
            "lazy restore",
            "share_of_whole",
            middle["lazy restore"] / middle["restore of all"],
        ),
    ]


def enumeration(device: str, turns: int) -> Rows:
    """Time the search for 10,000 tensors among a million Python objects."""
    gc.disable()  # it would go through the million again and again while they are made
    others = [[i] for i in range(1_000_000)]
    tensors = [torch.full((10,), 1.0, device=place(device)) for _ in range(10_000)]
    scans = [timed(lambda: scan(device)) for _ in range(2 * turns + 1)]
    lists = [timed(gc.get_objects) for _ in range(2 * turns + 1)]
    gc.enable()
    case = "10,000 tensors among 1 M objects"
    del others, tensors
    return [
        row(case, device, "scan", "time_ms", min(scans) * 1000),
        row(case, device, "gc.get_objects", "time_ms", min(lists) * 1000),
    ]


def first_launch(device: str, warmed: bool) -> Rows:
    """Time from a cell's start to the end of its first product of matrices, torch being loaded."""
    if warmed:
        warm.warm_up(device)

    def launch() -> None:
        matrix = torch.ones(64, 64, device=device)
        float((matrix @ matrix).sum())

    method = "pre-bound" if warmed else "cold"
    return [row("first launch", device, method, "time_ms", timed(launch) * 1000)]


def row(case: str, device: str, method: str, metric: str, value: float) -> dict[str, Any]:
    """Return a row of the table."""
    unit = next((u for e, u in _UNITS.items() if metric.endswith(e)), "x")
    return {
        "case": case, "device": device, "method": method, "metric": metric, "value": value,
        "unit": unit,
    }  # fmt: skip


_UNITS = {"_per_gb": "s/GB", "_ms": "ms", "_mb": "MB", "_s": "s"}


def main() -> None:
    """Do what the first argument says, one thing after the other."""
    torch.set_num_threads(1)
    rows: Rows = []
    for call in json.loads(sys.argv[1]):
        rows += globals()[call.pop("work")](**call)
        gc.collect()
        trim_heap()
    print(MARK + json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
