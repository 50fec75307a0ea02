"""Workloads: bursts of some notebooks, the same for every policy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.model import GIB
from ..errors import BadInputError
from .traces import Array, Session, Trace

CLIP_S = 48 * 3600.0
"""Length of what is taken of each session: single bursts of weeks would be all there is else."""

ACTIVE_BURSTS = 5
"""Bursts that a session must have to be drawn: a notebook that does nothing tells nothing."""

_TRIES = 100
"""How often a clip's begin is drawn before it is set to that of a burst: some sessions are one
burst of weeks."""

_MEMORY_GIB = ((0.0, 0.25), (0.5, 2.3), (0.75, 4.6), (0.9, 18.0), (0.99, 38.0), (1.0, 70.0))
"""Quantiles of device memory: published for the cluster of the Adobe trace, in GB, but for both
ends, which are assumed."""

_DUTY_MEDIAN, _DUTY_P90 = 0.085, 0.36
"""Published for the same cluster: the GPUs' utilisation."""

_Z90 = 1.2815515655446004
"""90 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook's bursts: seconds of thought before each, of work, and how many GPUs.

    `memory_bytes` is what its bursts hold of a GPU, `duty` the share of it that they keep busy.
    """

    name: str
    think_s: tuple[float, ...]
    work_s: tuple[float, ...]
    gpus: tuple[int, ...]
    memory_bytes: int
    duty: float


@dataclass(frozen=True, slots=True)
class Workload:
    """What a replay is about; `seed` tells how it was drawn."""

    name: str
    seed: int
    notebooks: tuple[Notebook, ...]

    @property
    def bursts(self) -> int:
        """Number of bursts in all."""
        return sum(len(n.work_s) for n in self.notebooks)


def draw(
    trace: Trace,
    notebooks: int,
    seed: int,
    *,
    clip_s: float = CLIP_S,
    cap_s: float | None = None,
    active: int = ACTIVE_BURSTS,
    dither: bool = True,
) -> Workload:
    """Return a workload of `notebooks` sessions of a trace, each clipped somewhere.

    Sessions with fewer than `active` bursts are left out. Each is drawn once before any is drawn
    again. The clip begins anywhere in a session that is longer, and has at least one burst. With
    the same seed, a smaller workload is the beginning of a larger one.

    Parameters
    ----------
    clip_s
        Seconds of each session that are taken; a burst that goes on ends with them.
    cap_s
        Longest burst; longer ones are cut to it.
    dither
        Thought is lengthened by a uniform part of the trace's grain: what comes within one minute
        of the record before it did not come in the same instant.

    Raises
    ------
    BadInputError
        If no session has enough bursts, or a number makes no sense.
    """
    if notebooks < 1 or not clip_s > 0 or (cap_s is not None and not cap_s > 0):
        raise BadInputError("a workload needs a notebook and a length above 0; give more")
    lively = [s for s in trace.sessions if len(s) >= active]
    if not lively:
        raise BadInputError(f"{trace.name}: no session has {active} bursts; ask for fewer")
    order = np.random.default_rng([seed, 0])
    queue: list[int] = []
    found = []
    for number in range(notebooks):
        if not queue:
            queue = order.permutation(len(lively)).tolist()
        rng = np.random.default_rng([seed, 1, number])
        found.append(_clip(lively[queue.pop()], rng, clip_s, cap_s, trace.grain_s * dither))
    return Workload(trace.name, seed, tuple(found))


def _clip(
    session: Session, rng: Array, clip_s: float, cap_s: float | None, grain_s: float
) -> Notebook:
    begin = _begin_s(session, rng, clip_s)
    inside = (session.start_s >= begin) & (session.start_s < begin + clip_s)
    start, work = session.start_s[inside] - begin, session.work_s[inside]
    end = np.minimum(start + work, clip_s)
    think = np.maximum(0.0, start - np.concatenate([[0.0], end[:-1]]))
    work = end - start if cap_s is None else np.minimum(end - start, cap_s)
    memory, duty = draw_memory_bytes(rng), draw_duty(rng)
    think += grain_s * rng.random(len(think))
    if session.memory_bytes is not None:
        memory = int(session.memory_bytes[inside].max())
    if session.duty is not None:
        duty = float(session.duty[inside].mean())
    return Notebook(
        session.name,
        tuple(think.tolist()),
        tuple(work.tolist()),
        tuple(session.gpus[inside].astype(int).tolist()),
        memory,
        duty,
    )


def _begin_s(session: Session, rng: Array, clip_s: float) -> float:
    """Return where a clip begins in which at least one burst begins."""
    first = float(session.start_s[0])
    span_s = float((session.start_s + session.work_s).max()) - first
    for _ in range(_TRIES):
        begin = first + float(rng.random()) * max(0.0, span_s - clip_s)
        if ((session.start_s >= begin) & (session.start_s < begin + clip_s)).any():
            return begin
    return float(session.start_s[rng.integers(len(session))])


def draw_memory_bytes(rng: Array) -> int:
    """Return device memory drawn from the published quantiles, log-linear between them."""
    levels, sizes = zip(*_MEMORY_GIB, strict=True)
    return int(np.exp(np.interp(rng.random(), levels, np.log(sizes))) * GIB)


def draw_duty(rng: Array) -> float:
    """Return a duty drawn from the log-normal through the published median and 90 % quantile."""
    sigma = np.log(_DUTY_P90 / _DUTY_MEDIAN) / _Z90
    return float(min(1.0, np.exp(np.log(_DUTY_MEDIAN) + sigma * rng.standard_normal())))
