"""Intervals that keep their promise: adjusted by how the latest ones fared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..model import Quantiles
from ..trace.quantile import quantile

NOMINAL = 0.8
"""Share of actual values that should lie between the quantiles 0.1 and 0.9."""

WINDOW = 200
"""Latest outcomes that count."""

MIN_OUTCOMES = 10
"""Outcomes before which an interval is left as it is."""

RATE = 0.02
"""How fast the level follows misses: Gibbs & Candes (2021) use 0.005 to 0.05."""


def unchanged(value: float) -> float:
    """Return the value: the scale of a quantity whose errors are alike in size everywhere."""
    return value


@dataclass(slots=True)
class Conformal:
    """Adaptive conformal adjustment of the interval between two quantiles.

    Conformalised quantile regression (Romano, Patterson & Candes 2019) with the adaptive level of
    Gibbs & Candes (2021): the interval is widened or narrowed, on a scale, by what would have made
    the latest ones hold the nominal share; the level itself follows the misses, so that the share
    comes right in the long run whatever the data do.

    Parameters
    ----------
    to_scale, from_scale
        The scale on which errors are alike, e.g. ``log1p`` and ``expm1``, and the way back.
    """

    to_scale: Callable[[float], float] = unchanged
    from_scale: Callable[[float], float] = unchanged
    level: float = NOMINAL
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def adjust(self, said: Quantiles) -> Quantiles:
        """Return the quantiles with the outer ones moved; the median stays between them."""
        if len(self.scores) < MIN_OUTCOMES:
            return said
        by = quantile(sorted(self.scores), min(1.0, max(0.0, self.level)))
        low = self.from_scale(self.to_scale(said.low) - by)
        high = self.from_scale(self.to_scale(said.high) + by)
        return Quantiles(max(0.0, min(low, said.mid)), said.mid, max(high, said.mid))

    def observe(self, actual: float, said: Quantiles) -> None:
        """Count an outcome; `said` are the quantiles before they were adjusted."""
        adjusted = self.adjust(said)
        if len(self.scores) >= MIN_OUTCOMES:
            missed = not adjusted.low <= actual <= adjusted.high
            self.level += RATE * ((1.0 if missed else 0.0) - (1 - NOMINAL))
        value = self.to_scale(actual)
        self.scores.append(max(self.to_scale(said.low) - value, value - self.to_scale(said.high)))
