"""What each policy makes of real bursts, and how long it takes to decide.

    python benchmarks/policy.py [--quick] [--trace PATH] [--seeds K] [--jobs N] [--json PATH]

Replays the bursts of a trace on 8 simulated GPUs (no GPU is there, all times are of a virtual
clock): 48-hour clips, run until empty, the same bursts for every policy, closed loop. Then what the
issue asks of the product is set beside what was found; every bar says by itself if it is met. The
trace is `--trace`, or the file that JUPYTER_GPU_TRACE names, or the one beside this repository;
where there is none only the cost of decisions is measured, and that is said.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench_decide import Case, make_view

from jupyter_gpu_predict.cli import console_for_people
from jupyter_gpu_predict.core.allocation.capacity import held_bytes
from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import ClusterView
from jupyter_gpu_predict.replay import report
from jupyter_gpu_predict.replay.machine import Costs, Machine, at_speed
from jupyter_gpu_predict.replay.policies import Entrant, entrants
from jupyter_gpu_predict.replay.policies.product import Product
from jupyter_gpu_predict.replay.report import Results
from jupyter_gpu_predict.replay.traces import read_trace

TRACE = Path(__file__).parents[2] / "shared/data/dev/adobe_june2021_events.csv.gz"
GPUS = 8
LOADS = (12, 16, 24, 32)
SIZES = ((100, 1_000), (300, 3_000), (1_000, 10_000), (3_000, 30_000))
"""GPUs and kernels of the decisions that are timed."""

KINDS = {
    "calm": Case("", 0, 0, 0, 0.5, 0.2),
    "20 claims": Case("", 0, 0, 20, 0.8, 0.2),
    "pressed": Case("", 0, 0, 20, 1.0, 0.5),
    "preempting": Case("", 0, 0, 20, 1.0, 0.5, preempt=True),
}
"""Clusters of which a decision is timed, of each size; 20 claims in all but the first."""

ROUNDS = 7
"""How often each is timed."""

FIFO, SJF, LRU = "FIFO, clairvoyant", "SJF, clairvoyant", "LRU under pressure"
OURS, HALTS, SHARES = "product", "product, preempting", "product, sharing"
SLOW = "product, preempting, 10 s a switch"
BLIND = "product, sharing at speed .55"
HALF, TWICE = "product, sharing, duties halved", "product, sharing, duties doubled"

COSTS = Costs()


@dataclass(frozen=True, slots=True)
class Bar:
    """Something asked of the product: a value, and the most that it may be."""

    text: str
    value: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the value is no more than it may be."""
        return self.value <= self.most


def bars(found: Results, extra: dict[str, Results], notebooks: int) -> list[Bar]:
    """Return the bars that apply to a number of notebooks."""
    fifo, sjf, ours, shares, halts = (
        partial(found.mean, name) for name in (FIFO, SJF, OURS, SHARES, HALTS)
    )
    made = [
        Bar(
            "exclusive: mean - FIFO <= bind + reclaim, s",
            ours("mean") - fifo("mean"),
            COSTS.bind_s + COSTS.suspend_s,
        ),
        Bar(
            "exclusive: evictions <= LRU's",
            ours("evictions"),
            found.mean(LRU, "evictions"),
        ),
        Bar("exclusive: idle beside a waiter, GPU s", ours("idle beside a waiter"), 0.0),
        Bar("sharing: mean <= .05 x FIFO, s", shares("mean"), 0.05 * fifo("mean")),
        Bar("sharing: mean <= exclusive's, s", shares("mean"), ours("mean")),
    ]
    made += [
        Bar(f"{name}: mean <= exclusive's, s", part.mean(name, "mean"), ours("mean"))
        for name, part in extra.items()
        if name != SLOW
    ]
    if notebooks < 24:
        return made
    return [
        *made,
        Bar("preempting: XS <= .05 x FIFO", halts("XS"), 0.05 * fifo("XS")),
        Bar("preempting: XS <= .08 x SJF", halts("XS"), 0.08 * sjf("XS")),
        Bar("preempting: mean <= .60 x FIFO, s", halts("mean"), 0.6 * fifo("mean")),
        Bar(
            "preempting: p95 <= suspend + restore + 1 s",
            halts("p95"),
            COSTS.suspend_s + COSTS.restore_s + 1.0,
        ),
        Bar("preempting: long slowdown <= SJF's", halts("long slowdown"), sjf("long slowdown")),
        Bar("preempting: switching <= 1 %", halts("switching / work"), 0.01),
        Bar("10 s a switch: switching <= 3 %", extra[SLOW].mean(SLOW, "switching / work"), 0.03),
    ]


def replays(options: argparse.Namespace) -> list[dict[str, object]]:
    """Print the replays' tables and the bars, and return their rows."""
    console = console_for_people()
    draw = report.from_trace(read_trace(options.trace))
    machine = Machine(GPUS, costs=COSTS)
    slow = replace(machine, costs=Costs(10.0, 10.0, 10.0, 20.0))
    wrong = {HALF: 0.5, TWICE: 2.0}
    others = {
        SLOW: (slow, Entrant(SLOW, partial(Product, preempt=True, name=SLOW))),
        BLIND: (
            replace(machine, speed=at_speed(0.55)),
            Entrant(BLIND, partial(Product, name=BLIND), shared=True),
        ),
    } | {
        name: (machine, Entrant(name, partial(Product, name=name, duty_factor=f), shared=True))
        for name, f in wrong.items()
    }
    rows: list[dict[str, object]] = []
    run = partial(report.replay, workers=options.jobs, told=_told)
    chosen = [e for e in entrants().values() if not options.policies or e.name in options.policies]
    for notebooks in options.loads:
        found = run(draw, notebooks, machine, chosen, options.seeds)
        extra = {
            name: run(draw, notebooks, m, [e], options.seeds)
            for name, (m, e) in others.items()
            if notebooks >= 24 or name != SLOW
        }
        for name, part in extra.items():
            found.values[name], found.seconds[name] = part.values[name], part.seconds[name]
        report.show(console, found, FIFO)
        rows += report.rows(found, FIFO)
        for name, seconds in found.seconds.items():
            speed = sum(found.of(name, "events")) / seconds
            rows.append(report.row(found.case, name, "replay speed", speed, "events/s"))
            console.print(f"{name}: {speed:,.0f} events/s")
        for bar in bars(found, extra, notebooks):
            verdict = "met" if bar.met else "MISSED"
            console.print(f"{found.case}: {bar.text}: {bar.value:.4g} of {bar.most:.4g}: {verdict}")
            rows.append(report.row(found.case, "bars", bar.text, float(bar.met), "met"))
    return rows


def _told(policy: str, done: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{policy}: {done}\x1b[K", end="", file=sys.stderr, flush=True)


def decisions(*, quick: bool) -> list[dict[str, object]]:
    """Print and return how long one decision takes as clusters grow."""
    rows: list[dict[str, object]] = []
    sizes = SIZES[:2] if quick else SIZES
    for kind, case in KINDS.items():
        best_ms: list[float] = []
        for gpus, kernels in sizes:
            name = f"{kernels} kernels, {gpus} GPUs, {kind}"
            view = make_view(replace(case, name=name, gpus=gpus, kernels=kernels))
            times_ms, floors_ms = [], []
            for _ in range(ROUNDS):
                floors_ms.append(1000 * _timed(held, view))
                times_ms.append(1000 * _timed(decide, view))
            best_ms.append(min(times_ms))
            median_ms, floor_ms = statistics.median(times_ms), min(floors_ms)
            print(
                f"{name}: {best_ms[-1]:.1f} ms at best, median {median_ms:.1f}; "
                f"only to sum what is held: {floor_ms:.1f}"
            )
            rows += [
                report.row(name, "decide", "best", best_ms[-1], "ms"),
                report.row(name, "decide", "median", median_ms, "ms"),
                report.row(name, "only to sum what is held", "best", floor_ms, "ms"),
            ]
        # n log n from the first to the last size, in the same terms.
        counts = [n for _, n in sizes]
        grown = exponent(counts, best_ms)
        bound = exponent(counts, [n * math.log(n) for n in counts])
        print(f"{kind}: grows as n^{grown:.2f}; n log n over these sizes is n^{bound:.2f}")
        rows.append(report.row(kind, "decide", "exponent", grown, "1"))
    return rows


def held(view: ClusterView) -> dict[str, int]:
    """Return the bytes that leases hold of each GPU: the least that any decision has to know."""
    found = {g.uuid: 0 for g in view.gpus}
    for kernel in view.kernels:
        if kernel.lease is not None:
            found[kernel.lease.gpu_uuid] += held_bytes(kernel)
    return found


def _timed(work: Callable[[ClusterView], object], view: ClusterView) -> float:
    begin = time.perf_counter()
    work(view)
    return time.perf_counter() - begin


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return p of the power law n^p that fits best, by least squares of the logarithms."""
    return statistics.linear_regression(
        [math.log(n) for n in sizes], [math.log(t) for t in times]
    ).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer seeds; ends within 45 s")
    parser.add_argument(
        "--trace", type=Path, default=Path(os.environ.get("JUPYTER_GPU_TRACE", TRACE))
    )
    parser.add_argument("--seeds", type=int, help="30, or 1 with --quick")
    parser.add_argument("--loads", type=lambda t: [int(n) for n in t.split(",")])
    parser.add_argument("--policies", default="", help="only these and what bars need; with ';'")
    parser.add_argument("--part", choices=("decide", "replay"), help="only this part")
    parser.add_argument("--jobs", type=int, default=2, help="processes that replay")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to PATH")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else 30)
    options.loads = options.loads or ([24] if options.quick else list(LOADS))
    options.policies = {p.strip() for p in options.policies.split(";") if p.strip()}
    if options.policies:
        options.policies |= {FIFO, SJF, LRU, OURS, HALTS, SHARES}

    rows = [] if options.part == "replay" else decisions(quick=options.quick)
    if options.part == "decide":
        pass
    elif options.trace.is_file():
        rows += replays(options)
    else:
        print(f"SKIPPED: no trace at {options.trace}; give one by --trace", file=sys.stderr)
    if options.json is not None:
        report.write_rows(options.json, rows)


if __name__ == "__main__":
    main()
