"""Replays of many seeds under many policies, and the tables and rows they make."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .engine import Simulation
from .figures import UNITS, Interval, difference, figures, paired, ratio
from .machine import Machine
from .policies import Entrant
from .workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

Draw = Callable[[int, int], Workload]
"""Draws a workload of so many notebooks by a seed."""

CAPACITY_P95_S = (5.0, 30.0)


@dataclass(slots=True)
class Results:
    """Figures by policy and seed, of one machine and number of notebooks."""

    case: str
    seeds: tuple[int, ...]
    values: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of this machine's time that each policy's replays took."""

    def of(self, policy: str, figure: str) -> list[float]:
        """Return a figure of a policy, seed by seed."""
        return [v[figure] for v in self.values[policy]]

    def mean(self, policy: str, figure: str) -> float:
        """Return the mean over the seeds that have the figure, NaN if none has."""
        known = [v for v in self.of(policy, figure) if math.isfinite(v)]
        return float(np.mean(known)) if known else math.nan

    def ratio(self, policy: str, reference: str, figure: str = "mean") -> Interval:
        """Return the ratio of a figure's means with its paired interval."""
        return paired(self.of(policy, figure), self.of(reference, figure), ratio)

    def difference(self, policy: str, reference: str, figure: str = "mean") -> Interval:
        """Return the difference of a figure's means with its paired interval."""
        return paired(self.of(policy, figure), self.of(reference, figure), difference)


def replay_one(workload: Workload, machine: Machine, entrant: Entrant) -> dict[str, float]:
    """Return the figures of one replay, and the seconds it took as ``seconds``."""
    begin = time.perf_counter()
    machine = replace(machine, shared=entrant.shared)
    found = figures(Simulation(workload, machine, entrant.make()).run())
    return {**found, "seconds": time.perf_counter() - begin}


def replay(
    draw: Draw,
    notebooks: int,
    machine: Machine,
    entrants: Sequence[Entrant],
    seeds: int,
    *,
    workers: int = 1,
    told: Callable[[str, int], None] = lambda policy, done: None,
) -> Results:
    """Replay the same workloads under each policy.

    Parameters
    ----------
    workers
        Processes that replay; with more than one, the entrants and `machine` must be picklable.
    told
        Called after each replay with the policy's name and how many are done.
    """
    results = Results(f"{machine.gpus} GPUs, {notebooks} notebooks", tuple(range(seeds)))
    loads = [draw(notebooks, seed) for seed in results.seeds]
    pool = ProcessPoolExecutor(workers) if workers > 1 else None
    try:
        for entrant in entrants:
            each = (replay_one, loads, repeat(machine), repeat(entrant))
            found = []
            for one in pool.map(*each) if pool else map(*each):
                found.append(one)
                told(entrant.name, len(found))
            results.values[entrant.name] = found
            results.seconds[entrant.name] = sum(one.pop("seconds") for one in found)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    return results


def rows(results: Results, reference: str | None = None) -> list[dict[str, Any]]:
    """Return the figures as rows of JSON; ratios are to `reference`, with their 95 % interval."""
    made = [
        row(results.case, policy, figure, results.mean(policy, figure), unit)
        for policy in results.values
        for figure, unit in UNITS.items()
    ]
    for policy in results.values:
        if reference in results.values:
            found = results.ratio(policy, reference)
            for end in ("value", "low", "high"):
                metric = f"mean / {reference}{'' if end == 'value' else ', ' + end}"
                made.append(row(results.case, policy, metric, getattr(found, end), "1"))
    return made


def row(case: str, method: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    """Return one row; what is not a number is ``None`` in JSON."""
    known = round(value, 6) if math.isfinite(value) else None
    return {"case": case, "method": method, "metric": metric, "value": known, "unit": unit}


def write_rows(path: Path, made: Iterable[dict[str, Any]]) -> None:
    """Write rows to a JSON file."""
    path.write_text(json.dumps(list(made), indent=1) + "\n", encoding="utf-8")


_SHOWN = (
    ("mean s", "mean", "{:.4g}"),
    ("p95 s", "p95", "{:.4g}"),
    ("XS", "XS", "{:.3g}"),
    ("long", "long slowdown", "{:.3f}"),
    ("switch", "switching / work", "{:.2%}"),
    ("beside s", "idle beside a waiter", "{:.0f}"),
    ("halt", "halts", "{:.0f}"),
)


def show(console: Console, results: Results, reference: str | None = None) -> None:
    """Print a table of means over the seeds."""
    from rich import box
    from rich.table import Table

    seeds = len(results.seeds)
    title = f"{results.case}: means over {seeds} seed{'s' if seeds > 1 else ''}"
    if reference in results.values:
        title += f"; ratios to {reference}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("policy", no_wrap=True)
    compared = reference if reference in results.values else None
    heads = [head for head, _, _ in _SHOWN] + (["mean ratio"] if compared else [])
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for policy in results.values:
        cells = [form.format(results.mean(policy, figure)) for _, figure, form in _SHOWN]
        if compared:
            found = results.ratio(policy, compared)
            cells.append(f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]")
        table.add_row(policy, *cells)
    console.print(table)


def capacity(
    draw: Draw,
    machine: Machine,
    entrant: Entrant,
    seeds: int,
    loads: Sequence[int],
) -> dict[float, float]:
    """Return the notebooks per GPU that a policy serves with a mean p95 of delay of 5 and 30 s.

    The largest of `loads` up to which all keep it; 0 if none does.
    """
    best = dict.fromkeys(CAPACITY_P95_S, 0.0)
    open_limits = set(CAPACITY_P95_S)
    for notebooks in sorted(loads):
        found = replay(draw, notebooks, machine, [entrant], seeds)
        p95 = found.mean(entrant.name, "p95")
        open_limits = {limit for limit in open_limits if p95 <= limit}
        if not open_limits:
            break
        for limit in open_limits:
            best[limit] = notebooks / machine.gpus
    return best


def from_trace(trace: Any, **options: Any) -> Draw:
    """Return what draws workloads from a trace; options are those of `workload.draw`."""
    from .workload import draw

    return partial(draw, trace, **options)


def show_calibration(console: Console) -> None:
    """Print the generator's statistics beside the published ones."""
    from rich import box
    from rich.table import Table

    from .generator import calibration

    table = Table(title="Generator", title_justify="left", box=box.SIMPLE_HEAD)
    for head in ("statistic", "published", "generated", "unit", "source"):
        table.add_column(head)
    for one in calibration():
        table.add_row(one.name, f"{one.published:g}", f"{one.generated:.3g}", one.unit, one.source)
    console.print(table)
