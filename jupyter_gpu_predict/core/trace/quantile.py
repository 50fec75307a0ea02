"""Quantiles of plain lists; the server's process does not pay for numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..model import Quantiles

LEVELS = (0.1, 0.5, 0.9)
"""Levels of a forecast's quantiles."""


def quantile(ordered: Sequence[float], level: float) -> float:
    """Return the linearly interpolated quantile of ascending values.

    The definition is the usual one of statistics packages (Hyndman & Fan 1996, type 7).

    Raises
    ------
    ValueError
        If `ordered` is empty.
    """
    if not ordered:
        raise ValueError("no values to take a quantile of")
    at = (len(ordered) - 1) * level
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    # Rounding must not lift an interpolated value above its neighbours.
    return min(max(low + (high - low) * (at - below), low), high)


def quantiles(values: Iterable[float]) -> Quantiles:
    """Return the quantiles 0.1, 0.5 and 0.9 of `values`.

    Raises
    ------
    ValueError
        If `values` is empty.
    """
    ordered = sorted(values)
    return Quantiles(*(quantile(ordered, level) for level in LEVELS))
