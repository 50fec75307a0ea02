"""Seeded workloads calibrated to published statistics, for where no trace is at hand.

Bursts of work and of thought are drawn apart from each other: a burst's length from the published
quantiles of the cluster of the Adobe trace, log-linear between them; thought as short pauses
between cells and, now and then, as long absences. No public source has notebook sessions with
GPU use and memory to the second: this combines several, and shows by `calibration` how near it
comes to each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..core.model import GIB
from ..errors import BadInputError
from .traces import Array
from .workload import CLIP_S, Notebook, Workload, draw_duty, draw_memory_bytes

_WORK_MIN = ((0.0, 0.1), (0.5, 2.0), (0.75, 6.0), (0.9, 20.0), (0.95, 40.0), (0.99, 220.0))
"""Published quantiles of burst lengths in minutes (the June file of the cluster); the lower end is
assumed."""

_TAIL_MIN = 2880.0
"""Longest burst in minutes: the length of a clip."""

_PAUSE_MEDIAN_S, _PAUSE_SPREAD = 75.0, 1.2
"""Thought within a session, log-normal. Chosen so that with the work before it the median time
from burst to burst is the published 5 min."""

_ABSENCE_SHARE, _ABSENCE_MEDIAN_S, _ABSENCE_SPREAD = 0.12, 4 * 3600.0, 1.3
"""Share of thoughts that are absences, and their log-normal length. Chosen so that reserved GPUs
idle as much as published."""


def generate(notebooks: int, seed: int, *, clip_s: float = CLIP_S, lively: bool = True) -> Workload:
    """Return a workload of `notebooks` notebooks over `clip_s` seconds.

    The same seed gives the same workload, and a smaller one is the beginning of a larger one. With
    `lively` each has a burst, as the sessions of a trace of bursts have; else as many never use
    their GPU as published.

    Raises
    ------
    BadInputError
        If a number is not above 0.
    """
    if notebooks < 1 or not clip_s > 0 or not math.isfinite(clip_s):
        raise BadInputError("a workload needs a notebook and a finite length above 0; give more")
    made = []
    for number in range(notebooks):
        rng = np.random.default_rng([seed, 2, number])
        idle = not lively and rng.random() < NEVER_USED
        made.append(_notebook(f"generated-{number}", rng, 0.0 if idle else clip_s, lively))
    return Workload("generated", seed, tuple(made))


NEVER_USED = 0.7
"""Published share of sessions that never use their GPU (NotebookOS, ASPLOS'26)."""


def _notebook(name: str, rng: Array, clip_s: float, lively: bool) -> Notebook:
    think: list[float] = []
    work: list[float] = []
    # The clip begins somewhere in a session: in a thought, as likely as thoughts are long.
    now = float(rng.random()) * min(_think_s(rng, long=True), clip_s / 2 if lively else clip_s)
    since = 0.0
    while now < clip_s:
        think.append(now - since)
        work.append(min(_work_s(rng), clip_s - now))
        since = now + work[-1]
        now = since + _think_s(rng, long=rng.random() < _ABSENCE_SHARE)
    memory, duty = draw_memory_bytes(rng), draw_duty(rng)
    return Notebook(name, tuple(think), tuple(work), (1,) * len(work), memory, duty)


def _work_s(rng: Array) -> float:
    levels, minutes = zip(*_WORK_MIN, (1.0, _TAIL_MIN), strict=True)
    return 60.0 * float(np.exp(np.interp(rng.random(), levels, np.log(minutes))))


def _think_s(rng: Array, *, long: bool) -> float:
    median, spread = _PAUSE_MEDIAN_S, _PAUSE_SPREAD
    if long:
        median, spread = _ABSENCE_MEDIAN_S, _ABSENCE_SPREAD
    return float(median * np.exp(spread * rng.standard_normal()))


@dataclass(frozen=True, slots=True)
class Target:
    """A published statistic, and what the generator makes of it; both in `unit`."""

    name: str
    published: float
    generated: float
    unit: str
    source: str


def calibration(notebooks: int = 400, seed: int = 0) -> list[Target]:
    """Return the published statistics beside those of a generated workload, alone on its GPUs."""
    made = [n for n in generate(notebooks, seed).notebooks if n.work_s]
    work = np.concatenate([n.work_s for n in made])
    gaps = np.concatenate([np.array(n.think_s[1:]) + np.array(n.work_s[:-1]) for n in made])
    used = np.array([sum(n.work_s) / CLIP_S for n in made])
    memory = np.array([n.memory_bytes for n in made]) / GIB
    duty = np.array([n.duty for n in made])
    june, paper = "June 2021 file of the cluster", "NotebookOS, ASPLOS'26"
    found = [
        Target(f"burst length p{q:g}", minutes, float(np.percentile(work, q)) / 60, "min", june)
        for q, minutes in ((50, 2), (75, 6), (90, 20), (95, 40), (99, 220))
    ]
    found += [
        Target(f"device memory p{q:g}", gb, float(np.percentile(memory, q)), "GB", june)
        for q, gb in ((50, 2.3), (75, 4.6), (90, 18), (99, 38))
    ]
    found += [
        Target("utilisation p50", 0.085, float(np.percentile(duty, 50)), "1", june),
        Target("utilisation p90", 0.36, float(np.percentile(duty, 90)), "1", june),
        Target("time from burst to burst p50", 5, float(np.median(gaps)) / 60, "min", paper),
        Target("reserved time idle, at least", 0.81, float(1 - used.mean()), "1", paper),
    ]
    everybody = generate(notebooks, seed, lively=False).notebooks
    unused = sum(not n.work_s for n in everybody) / len(everybody)
    share = np.array([sum(n.work_s) / CLIP_S for n in everybody])
    found += [
        Target("sessions that never use it", NEVER_USED, unused, "1", paper),
        Target("sessions that use it <= 5 %", 0.75, float((share <= 0.05).mean()), "1", paper),
    ]
    return found
