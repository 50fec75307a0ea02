"""Whether any GPU could take a kernel, told at once from what all of them have free."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate

from ..model import GpuView
from .capacity import RISK_RANK, risk_rank

_CLOSE = 1e-9
"""Sums of duties differ by less, whatever the order they are added in."""


class Targets:
    """GPUs with the bytes free and the duty on each, to be asked for both at once."""

    def __init__(self, gpus: Iterable[tuple[GpuView, int, float]]) -> None:
        self._by_risk: dict[int, tuple[list[int], list[float]]] = {}
        gpus = list(gpus)
        self.least_duty = min((duty for *_, duty in gpus), default=math.inf) - _CLOSE
        """What is on the GPU with the least duty, and hardly less."""
        ordered = sorted(((-free, duty, risk_rank(g)) for g, free, duty in gpus))
        for rank in RISK_RANK.values():
            safe = [(less, duty) for less, duty, risk in ordered if risk <= rank]
            least = list(accumulate((duty for _, duty in safe), min))
            self._by_risk[rank] = [less for less, _ in safe], least

    def has(self, source: GpuView, size: int, duty: float) -> bool:
        """Return whether one that is as safe as `source` has `size` free and at most this duty.

        One that is just too busy may pass.
        """
        sizes, least = self._by_risk[risk_rank(source)]
        fitting = bisect_left(sizes, -size + 1)
        return fitting > 0 and least[fitting - 1] <= duty + _CLOSE
