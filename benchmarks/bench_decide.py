"""How long one decision takes, and what preempting long bursts does to waiting.

    python benchmarks/bench_decide.py [--quick] [--json PATH]

Each case is a fixed, seeded cluster. "calm" has no claims; "claims" has claims against free and
idle memory; "pressed" has them against GPUs full of kernels of which half run a cell, so that most
claims look everywhere and wait, with preemption of long bursts off and on. Cases are measured in
turn, round by round.

Then generated bursts of work, with and without preemption: no I/O, time is simulated, and the plans
of the policy are carried out by the small cluster of the tests. Durations have a heavy tail
(log-normal, median 37 s, cut at 48 h: about half of the work is in bursts over 10 h), thought has a
median of 8 min; each way out or back of a kernel's state takes 2 s. A burst's delay is how much
later it ended than on a GPU of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import (
    GIB,
    Claim,
    ClusterView,
    Forecast,
    GpuView,
    HorizonForecast,
    KernelView,
    Lease,
    LeaseState,
    PolicySettings,
    Quantiles,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "core" / "allocation"))

from allocation_cluster import gpu
from burst_cluster import BurstCluster, Done, User

NOW_S = 1e6
GPU_BYTES = 80 * GIB
HORIZONS_S = (5, 15, 30, 60, 300)


@dataclass(frozen=True, slots=True)
class Case:
    """A cluster to decide about; `fill` is the share of each GPU that leases hold."""

    name: str
    gpus: int
    kernels: int
    claims: int
    fill: float
    busy: float
    preempt: bool = False


SMALL = (
    Case("8 GPUs, 100 kernels, calm", 8, 100, 0, 0.5, 0.2),
    Case("8 GPUs, 100 kernels, 20 claims", 8, 100, 20, 0.8, 0.2),
    Case("8 GPUs, 100 kernels, 20 claims, pressed", 8, 100, 20, 1.0, 0.5),
    Case("8 GPUs, 100 kernels, 20 claims, preempting", 8, 100, 20, 1.0, 0.5, preempt=True),
)
LARGE = (
    Case("64 GPUs, 1000 kernels, calm", 64, 1000, 0, 0.5, 0.2),
    Case("64 GPUs, 1000 kernels, 200 claims", 64, 1000, 200, 0.8, 0.2),
    Case("64 GPUs, 1000 kernels, 200 claims, pressed", 64, 1000, 200, 1.0, 0.5),
    Case("64 GPUs, 1000 kernels, 200 claims, preempting", 64, 1000, 200, 1.0, 0.5, preempt=True),
)


def make_view(case: Case) -> ClusterView:
    """Return the case's cluster: a fifth of the kernels suspended, a tenth without a lease.

    Half of the kernels can be moved.
    """
    rng = random.Random(7)
    gpus = tuple(GpuView(f"GPU-{i}", i, "NVIDIA H100", GPU_BYTES) for i in range(case.gpus))
    bound = [i for i in range(case.kernels) if i % 10 not in (0, 1, 2)]
    share = int(case.fill * GPU_BYTES * case.gpus / max(1, len(bound)))
    kernels = []
    placed = [0, 0]
    for i in range(case.kernels):
        is_bound, has_lease = i % 10 not in (0, 1, 2), i % 10 != 0
        # Each GPU gets its part of those that hold memory, and of the others.
        kernel_id, gpu = f"{i:08d}", gpus[placed[is_bound] % case.gpus].uuid
        placed[is_bound] += 1
        state = LeaseState.BOUND if is_bound else LeaseState.SUSPENDED
        lease = Lease(kernel_id, gpu, share, state, i + 1, NOW_S - 1e4) if has_lease else None
        is_busy = is_bound and rng.random() < case.busy
        kernels.append(
            KernelView(
                kernel_id,
                lease,
                used_bytes=share if is_bound else 0,
                suspended_bytes=0 if is_bound or not has_lease else share,
                busy=is_busy,
                expected_end_s=NOW_S + rng.uniform(1, 600) if is_busy else None,
                last_used_s=NOW_S - rng.uniform(1, 3600),
                restore_cost_s=rng.uniform(0.1, 5),
                duty=rng.uniform(0, 0.4),
                age_s=1e4,
                movable=i % 2 == 0,
                forecast=_forecast(kernel_id, rng.random() ** 3),
            )
        )
    claims = []
    for kernel in rng.sample([k for k in kernels if not k.busy], case.claims):
        size = rng.randint(1, 40) * GIB
        made_s = NOW_S - rng.uniform(0, 60)
        claims.append(Claim(f"c{kernel.kernel_id}", kernel.kernel_id, size, made_s, NOW_S + 600))
    if case.preempt:
        kernels = [
            replace(k, why_not_preempt=None, attained_s=rng.uniform(0, 3600)) if k.busy else k
            for k in kernels
        ]
    settings = PolicySettings(preempt=case.preempt)
    return ClusterView(NOW_S, gpus, tuple(kernels), tuple(claims), settings)


def _forecast(kernel_id: str, probability: float) -> Forecast:
    memory = Quantiles(0.0, 4.0 * GIB, 8.0 * GIB)
    horizons = tuple(HorizonForecast(h, memory, probability) for h in HORIZONS_S)
    return Forecast(kernel_id, NOW_S, "empirical", "kernel", horizons, None, ())


def make_users(count: int, bursts: int, seed: int) -> list[User]:
    """Return users who want a whole GPU each, with bursts of heavy-tailed length."""
    rng = random.Random(seed)
    return [
        User(
            f"k{i}",
            512,
            [
                (
                    min(12 * 3600.0, max(5.0, rng.lognormvariate(6.2, 1.5))),
                    min(48 * 3600.0, max(2.0, rng.lognormvariate(3.6, 2.6))),
                )
                for _ in range(bursts)
            ],
        )
        for i in range(count)
    ]


def delays(done: list[Done]) -> dict[str, tuple[float, str]]:
    """Return the figures of a simulation with their units."""
    every = [d.delay_s for d in done]
    short = [d.delay_s for d in done if d.work_s < 60]
    long = [1 + d.delay_s / d.work_s for d in done if d.work_s >= 2400]
    return {
        "mean": (statistics.mean(every), "s"),
        "p95": (_p95(every), "s"),
        "p95, bursts < 60 s": (_p95(short), "s"),
        "mean delay / max(work, 10 s)": (
            statistics.mean(d.delay_s / max(d.work_s, 10) for d in done),
            "1",
        ),
        "slowdown, bursts > 40 min": (statistics.mean(long) if long else 1.0, "1"),
    }


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def simulate(gpus: int, users: int, bursts: int, seeds: int) -> list[dict[str, object]]:
    """Print and return the delays of bursts without and with preemption."""
    case = f"{users} notebooks on {gpus} GPUs, {bursts} bursts each, {seeds} seeds"
    rows: list[dict[str, object]] = []
    print(f"\nDelay of bursts, {case} (simulated)")
    for method, preempt in (("least recently used", False), ("preempting", True)):
        done: list[Done] = []
        halts, switched_s = 0, 0.0
        for seed in range(seeds):
            cluster = BurstCluster(
                [gpu(i) for i in range(gpus)],
                make_users(users, bursts, seed),
                PolicySettings(preempt=preempt),
                watched=False,
            )
            cluster.work()
            done += cluster.done
            halts += sum(way == "out" for r in cluster.runs.values() for _, way in r.switches)
            switched_s += cluster.switched_s
        figures = delays(done)
        figures["switching / work"] = (switched_s / sum(d.work_s for d in done), "1")
        figures["bursts halted"] = (float(halts), "times")
        print(f"{method:<20}  " + ", ".join(f"{k} {v:.4g}" for k, (v, _) in figures.items()))
        rows += [
            {"case": case, "method": method, "metric": metric, "value": value, "unit": unit}
            for metric, (value, unit) in figures.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; ends within seconds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to PATH")
    options = parser.parse_args()
    rounds = 5 if options.quick else 30

    cases = (*SMALL, *LARGE)
    views = {case.name: make_view(case) for case in cases}
    times_ms: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for name, view in views.items():
            start = time.perf_counter()
            decide(view)
            times_ms[name].append(1000 * (time.perf_counter() - start))

    rows: list[dict[str, object]] = []
    print(f"{'case':<52} {'median ms':>10} {'max ms':>8}  actions")
    for name, view in views.items():
        median, worst = statistics.median(times_ms[name]), max(times_ms[name])
        kinds = Counter(type(a).__name__ for a in decide(view).actions)
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"
        print(f"{name:<52} {median:>10.2f} {worst:>8.2f}  {told}")
        rows += [
            {"case": name, "method": "decide", "metric": metric, "value": value, "unit": "ms"}
            for metric, value in (("median", median), ("max", worst))
        ]
        rows += [
            {"case": name, "method": "decide", "metric": kind, "value": n, "unit": "actions"}
            for kind, n in sorted(kinds.items())
        ]
    rows += simulate(4, 14, 6, 1) if options.quick else simulate(8, 32, 12, 2)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
