"""When GPUs and services were in use, as regular series, from the evaluation traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from jupyter_gpu_predict.training.demand import UseSeries

BUSY = 0.02
"""Share of a step from which on it counts as busy."""

ADOBE_DAYS = 20
POD_STEPS = 530
REQUEST_STEPS = 1500
REQUEST_GRAINS_S = (5, 15, 30)
REQUEST_USERS = 40
WINDOWS = 3


def use_series(folder: Path) -> dict[str, list[UseSeries]]:
    """Return all series of the traces by group: GPU pods, notebook bursts, requests by grain."""
    groups = {"pods, 57 s": pods(folder), "notebooks, 60 s": notebooks(folder)}
    for grain in REQUEST_GRAINS_S:
        groups[f"requests, {grain} s"] = requests(folder, grain)
    return groups


def series(owner: str, levels: np.ndarray, step_s: float) -> UseSeries:
    return UseSeries(owner, levels, (levels > BUSY).astype(int), step_s)


def pods(folder: Path) -> list[UseSeries]:
    frame = pd.read_csv(folder / "gentd26_pod_gpu.csv.gz").sort_values(["pod", "t_s"])
    found = [(pod, rows.duty_pct.to_numpy() / 100) for pod, rows in frame.groupby("pod")]
    return [series(str(pod), levels, 57) for pod, levels in found if len(levels) >= POD_STEPS]


def notebooks(folder: Path) -> list[UseSeries]:
    frame = pd.read_csv(folder / "adobe_june2021_events.csv.gz")
    steps = ADOBE_DAYS * 1440
    found = []
    for session, rows in frame.groupby("session"):
        levels = np.zeros(steps)
        for row in rows.itertuples():
            levels[int(row.start_min) : int(min(steps, row.start_min + row.dur_min))] = 1
        found.append(series(str(session), levels, 60))
    return found


def requests(folder: Path, grain: int) -> list[UseSeries]:
    """Return up to three of each busy user's densest stretches that do not overlap."""
    frame = pd.read_csv(folder / "gentd26_user_requests.csv.gz")
    span = grain * REQUEST_STEPS
    found = []
    for user in frame.groupby("user").size().sort_values(ascending=False).index[:REQUEST_USERS]:
        rows = frame[frame.user == user].sort_values("t_s")
        times = rows.t_s.to_numpy()
        counts = np.searchsorted(times, times + span) - np.arange(len(times))
        begins: list[float] = []
        for i in np.argsort(-counts, kind="stable"):
            if len(begins) == WINDOWS or counts[i] < POD_STEPS // 35:
                break
            if all(abs(times[i] - begin) >= span for begin in begins):
                begins.append(times[i])
        for begin in begins:
            levels = np.zeros(span)
            inside = rows[(rows.t_s >= begin - 600) & (rows.t_s < begin + span)]
            for row in inside[inside.exec_s.notna()].itertuples():
                start = int(row.t_s - begin)
                levels[max(0, start) : max(0, int(start + max(1, row.exec_s)))] = 1
            found.append(series(str(user), levels.reshape(-1, grain).mean(1), grain))
    return found
