"""What happened within each window of a given length of a series."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

from ..trace.series import DemandSeries

MIN_WINDOWS = 5
"""Fewer complete windows than this say too little of a horizon: a shorter one is used instead."""


def usable_steps(known: int, wanted: int) -> int:
    """Return the window length to learn from, `wanted` steps or what `known` steps allow.

    A series too short for :data:`MIN_WINDOWS` windows of the wanted length is cut into windows of
    half its own.
    """
    if known - wanted + 1 >= MIN_WINDOWS:
        return wanted
    return max(1, min(wanted, known // 2))


def window_maxima(values: Sequence[float], steps: int) -> list[float | None]:
    """Return the greatest known value of every complete window of `steps` values.

    Entry ``i`` belongs to ``values[i:i + steps]``; it is ``None`` where all of them are NaN.
    """
    maxima: list[float | None] = []
    falling: deque[int] = deque()
    for i, value in enumerate(values):
        if not math.isnan(value):
            while falling and values[falling[-1]] <= value:
                falling.pop()
            falling.append(i)
        begin = i - steps + 1
        if begin >= 0:
            while falling and falling[0] < begin:
                falling.popleft()
            maxima.append(values[falling[0]] if falling else None)
    return maxima


def windows_with_need(need: Sequence[int], steps: int) -> list[int]:
    """Return 1 for every complete window of `steps` steps that holds a need, else 0."""
    hits: list[int] = []
    inside = 0
    for i, value in enumerate(need):
        inside += value
        if i >= steps:
            inside -= need[i - steps]
        if i >= steps - 1:
            hits.append(int(inside > 0))
    return hits


def last_known(values: Sequence[float]) -> list[float | None]:
    """Return the last known value of ``values[:i]`` for every ``i``; one entry more than values."""
    seen: list[float | None] = [None]
    for value in values:
        seen.append(seen[-1] if math.isnan(value) else value)
    return seen


def steps_since_need(need: Sequence[int]) -> Iterator[int | None]:
    """Yield, for every ``i``, the steps since the last need in ``need[:i]`` (0: in the last step).

    ``None`` where there was none yet; one entry more than `need`.
    """
    age: int | None = None
    yield age
    for value in need:
        age = 0 if value else (None if age is None else age + 1)
        yield age


def stretch(probability: float, learned_steps: int, wanted_steps: int) -> float:
    """Carry a probability over to a longer horizon, as if the hazard stayed what it is."""
    if learned_steps >= wanted_steps or probability >= 1:
        return probability
    return 1 - math.pow(1 - probability, wanted_steps / learned_steps)


def known_memory(series: DemandSeries) -> list[float]:
    """Return the memory of the steps that are known."""
    return [value for value in series.memory_bytes if not math.isnan(value)]
