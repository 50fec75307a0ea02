"""How well the models' P(GPU needed) does for one kernel, by what then happened.

A backtest of the content would need the document of each moment; so it is scored as it goes, and
timing beside it at the same moments.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

AGES_S = (0, 5, 10, 20, 40, 80, 160, 320, 640)
"""Idle ages between which one moment counts: or a night would outweigh all that was run."""

MIN_OUTCOMES = 20
WINDOW = 200
"""Outcomes that count, the latest ones."""


@dataclass(frozen=True, slots=True)
class Score:
    """Mean squared error of P(GPU needed) over the horizons of `outcomes` moments."""

    brier: float | None = None
    outcomes: int = 0


@dataclass(frozen=True, slots=True)
class _Moment:
    made_s: float
    horizons_s: tuple[int, ...]
    said: Mapping[str, tuple[float, ...]]


@dataclass
class LiveScores:
    """The scores of one kernel's models; each outcome scores all of them."""

    _waiting: deque[_Moment] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _errors: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _last: tuple[float, int] | None = None

    def said(
        self,
        made_s: float,
        idle_since_s: float,
        horizons_s: Sequence[int],
        said: Mapping[str, tuple[float, ...]],
    ) -> None:
        """Take what the models say in an idle moment, one value for each horizon.

        Parameters
        ----------
        made_s
            When.
        idle_since_s
            When the kernel became idle.
        horizons_s
            Horizons, ascending.
        said
            By model. A moment of which not two models speak compares nothing and is left out.
        """
        piece = bisect_right(AGES_S, made_s - idle_since_s)
        if len(said) < 2 or self._last == (idle_since_s, piece):
            return
        self._last = (idle_since_s, piece)
        self._waiting.append(_Moment(made_s, tuple(horizons_s), dict(said)))

    def happened(self, uses_s: Iterable[float], known_until_s: float) -> None:
        """Score what is known by now.

        Parameters
        ----------
        uses_s
            When cells began that used the GPU.
        known_until_s
            Until when all of them are known: while a cell runs, whether it does is not.
        """
        uses = sorted(uses_s)
        left = []
        for moment in self._waiting:
            after = bisect_right(uses, moment.made_s)
            used_s = uses[after] if after < len(uses) else None
            if used_s is None and known_until_s < moment.made_s + moment.horizons_s[-1]:
                left.append(moment)
                continue
            needed = [used_s is not None and used_s <= moment.made_s + h for h in moment.horizons_s]
            self._errors.append(
                {
                    model: sum((p - y) ** 2 for p, y in zip(chances, needed, strict=True))
                    / len(needed)
                    for model, chances in moment.said.items()
                }
            )
        self._waiting = deque(left, maxlen=WINDOW)

    def scores(self) -> dict[str, Score]:
        """Return the score of each model."""
        found: dict[str, list[float]] = {}
        for errors in self._errors:
            for model, error in errors.items():
                found.setdefault(model, []).append(error)
        return {m: Score(sum(errors) / len(errors), len(errors)) for m, errors in found.items()}
