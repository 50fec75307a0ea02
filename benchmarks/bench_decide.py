"""How long one decision takes: `decide(view)` on clusters of several sizes and moods.

    python benchmarks/bench_decide.py [--quick] [--json PATH]

Each case is a fixed, seeded cluster. "calm" has no claims; "claims" has claims against free and
idle memory; "pressed" has them against GPUs full of kernels of which half run a cell, so that most
claims look everywhere and wait. Cases are measured in turn, round by round.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass
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
    Quantiles,
)

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


SMALL = (
    Case("8 GPUs, 100 kernels, calm", 8, 100, 0, 0.5, 0.2),
    Case("8 GPUs, 100 kernels, 20 claims", 8, 100, 20, 0.8, 0.2),
    Case("8 GPUs, 100 kernels, 20 claims, pressed", 8, 100, 20, 1.0, 0.5),
)
LARGE = (
    Case("64 GPUs, 1000 kernels, calm", 64, 1000, 0, 0.5, 0.2),
    Case("64 GPUs, 1000 kernels, 200 claims", 64, 1000, 200, 0.8, 0.2),
    Case("64 GPUs, 1000 kernels, 200 claims, pressed", 64, 1000, 200, 1.0, 0.5),
)


def make_view(case: Case) -> ClusterView:
    """Return the case's cluster: a fifth of the kernels suspended, a tenth without a lease."""
    rng = random.Random(7)
    gpus = tuple(GpuView(f"GPU-{i}", i, "NVIDIA H100", GPU_BYTES) for i in range(case.gpus))
    bound = [i for i in range(case.kernels) if i % 10 not in (0, 1, 2)]
    share = int(case.fill * GPU_BYTES * case.gpus / max(1, len(bound)))
    kernels = []
    for i in range(case.kernels):
        kernel_id, gpu = f"{i:08d}", gpus[i % case.gpus].uuid
        is_bound, has_lease = i % 10 not in (0, 1, 2), i % 10 != 0
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
                forecast=_forecast(kernel_id, rng.random() ** 3),
            )
        )
    claims = []
    for kernel in rng.sample([k for k in kernels if not k.busy], case.claims):
        size = rng.randint(1, 40) * GIB
        made_s = NOW_S - rng.uniform(0, 60)
        claims.append(Claim(f"c{kernel.kernel_id}", kernel.kernel_id, size, made_s, NOW_S + 600))
    return ClusterView(NOW_S, gpus, tuple(kernels), tuple(claims))


def _forecast(kernel_id: str, probability: float) -> Forecast:
    memory = Quantiles(0.0, 4.0 * GIB, 8.0 * GIB)
    horizons = tuple(HorizonForecast(h, memory, probability) for h in HORIZONS_S)
    return Forecast(kernel_id, NOW_S, "empirical", "kernel", horizons, None, ())


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

    rows = []
    print(f"{'case':<46} {'median ms':>10} {'max ms':>8}  actions")
    for name, view in views.items():
        median, worst = statistics.median(times_ms[name]), max(times_ms[name])
        kinds = Counter(type(a).__name__ for a in decide(view).actions)
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "none"
        print(f"{name:<46} {median:>10.2f} {worst:>8.2f}  {told}")
        rows += [
            {"case": name, "method": "decide", "metric": metric, "value": value, "unit": "ms"}
            for metric, value in (("median", median), ("max", worst))
        ]
        rows += [
            {"case": name, "method": "decide", "metric": kind, "value": n, "unit": "actions"}
            for kind, n in sorted(kinds.items())
        ]
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
