"""Whether 80 % intervals of a burst's peak memory and length hold 80 %.

Each burst is forecast from the latest 60 before it of the same pod, session or user, so nothing is
learned from others or from later. The first 15 of each are not counted: 5 to have quantiles, 10 for
the adjustment to begin.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from forecast_cases.use_series import BUSY
from jupyter_gpu_predict.core.forecast.conformal import Conformal
from jupyter_gpu_predict.core.trace.quantile import quantiles

PAST = 60
ENOUGH = 5
COUNTED_FROM = 15
LARGEST_LOG = 60.0


def interval_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the coverage of both quantities, before and after the adjustment."""
    rows = []
    for case, values in (
        ("peak memory of a burst, GPU pods", peaks(folder)),
        ("log length of a burst, notebooks", lengths(folder)),
    ):
        plain, adjusted, count = coverage(values)
        for method, value in (("quantiles of the past", plain), ("conformal", adjusted)):
            rows.append(_row(case, method, "80 % coverage", value, ""))
        rows.append(_row(case, "all", "bursts", count, "bursts"))
        rows.append(_row(case, "all", "owners", len(values), "owners"))
    return rows


def coverage(values: Mapping[str, Sequence[float]]) -> tuple[float, float, int]:
    """Return the share held by plain and by adjusted intervals, and of how many."""
    plain = adjusted = count = 0
    for series in values.values():
        conformal = Conformal(math.log1p, lambda x: math.expm1(min(x, LARGEST_LOG)))
        for i in range(ENOUGH, len(series)):
            said = quantiles(series[max(0, i - PAST) : i])
            moved = conformal.adjust(said)
            conformal.observe(series[i], said)
            if i >= COUNTED_FROM:
                plain += said.low <= series[i] <= said.high
                adjusted += moved.low <= series[i] <= moved.high
                count += 1
    return plain / count, adjusted / count, count


def peaks(folder: Path) -> dict[str, list[float]]:
    """Return the peak memory, in MiB, of every burst of every pod."""
    frame = pd.read_csv(folder / "gentd26_pod_gpu.csv.gz").sort_values(["pod", "t_s"])
    found = {}
    for pod, rows in frame.groupby("pod"):
        busy = (rows.duty_pct.to_numpy() / 100 > BUSY).astype(int)
        memory = rows.mem_mib.to_numpy()
        edges = [0, *(np.flatnonzero(np.diff(busy)) + 1).tolist(), len(busy)]
        bursts = [memory[a:b].max() for a, b in itertools.pairwise(edges) if busy[a]]
        found[str(pod)] = [float(peak) for peak in bursts if np.isfinite(peak)]
    return found


def lengths(folder: Path) -> dict[str, list[float]]:
    """Return the length, in minutes, of every burst of every session."""
    frame = pd.read_csv(folder / "adobe_june2021_events.csv.gz").sort_values("start_min")
    return {str(s): rows.dur_min.astype(float).tolist() for s, rows in frame.groupby("session")}


def _row(case: str, method: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"case": case, "method": method, "metric": metric, "value": float(value), "unit": unit}
