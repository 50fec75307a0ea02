"""How long a user waits before the next cell: a hazard that falls with the idle age.

Time is cut at :data:`EDGES_S`; within a piece the hazard is constant, so that the model is a
logit of "the next cell starts in this piece, having not started before" (Allison 1982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import BadInputError
from .logit import Features, chance, check_weights, fit_choices, utility

NAME = "delay"

EDGES_S = (0, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560)
"""Where the pieces begin; the last one has no end."""

FAST = 2
"""First pieces in which the habits of a user count once more: some go on at once, some never."""

TYPICAL = math.log1p(32)
"""Log of the usual gap; gaps are counted from there."""

_HABITS = ("usual gap", "last gap", "last run")
FEATURES = (
    *(f"from {edge} s" for edge in EDGES_S),
    *_HABITS,
    *(f"{habit}, at once" for habit in _HABITS),
    "first run",
    "went back",
    "went on",
)

RIDGE = 1.0
RECENT = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """What a delay is told from: all of it known when the last run ends.

    `gaps_s` are the idle times before the earlier runs of this session, oldest first; `last_run_s`
    is how long the last one took. `moved` is the last move in the document, in cells; ``None``
    where there was none.
    """

    gaps_s: tuple[float, ...] = ()
    last_run_s: float = 0.0
    moved: int | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """The distribution of one delay."""

    hazards: tuple[float, ...]

    def survival(self, age_s: float) -> float:
        """Return the chance that nothing has started after `age_s` seconds; never quite 0."""
        left = 1.0
        for i, begin in enumerate(EDGES_S):
            if age_s <= begin:
                break
            end = EDGES_S[i + 1] if i + 1 < len(EDGES_S) else 2 * begin
            share = (age_s - begin) / (end - begin)
            left *= (1 - self.hazards[i]) ** (share if i + 1 == len(EDGES_S) else min(1.0, share))
        return max(left, 1e-12)

    def within(self, horizon_s: float, age_s: float = 0.0) -> float:
        """Return the chance of a start within `horizon_s`, where none came for `age_s` seconds."""
        if horizon_s <= 0:
            return 0.0
        return 1 - self.survival(age_s + horizon_s) / self.survival(age_s)

    def quantile(self, level: float, age_s: float = 0.0) -> float:
        """Return how many seconds on a start has come with chance `level`; none in `age_s` yet."""
        wanted = (1 - level) * self.survival(age_s)
        left = 1.0
        for i, begin in enumerate(EDGES_S):
            last = i + 1 == len(EDGES_S)
            end = 2 * begin if last else EDGES_S[i + 1]
            # A hazard of 0 would mean for ever, and of 1 a logarithm without a value.
            stays = min(max(1 - self.hazards[i], 1e-12), 1 - 1e-9)
            if last or left * stays <= wanted:
                break
            left *= stays
        share = math.log(wanted / left) / math.log(stays)
        return max(0.0, begin + share * (end - begin) - age_s)


@dataclass(frozen=True, slots=True)
class DelayModel:
    """Tells delays; `weights` are those of :data:`FEATURES`."""

    weights: Mapping[str, float]

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DelayModel:
        """Return the model kept as a JSON object of its weights.

        Raises
        ------
        ModelFileError
            If it was trained on other features, or a weight is no finite number.
        """
        return cls(check_weights(record, FEATURES, NAME))

    def forecast(self, moment: Moment) -> Delay:
        """Return the delay after a moment.

        Raises
        ------
        BadInputError
            If a time of the moment is negative or no number.
        """
        _check(moment, 0.0)
        pieces = range(len(EDGES_S))
        return Delay(tuple(chance(utility(self.weights, _features(moment, i))) for i in pieces))


def fit(examples: Iterable[tuple[Moment, float]], ridge: float = RIDGE) -> DelayModel:
    """Return the model of these delays, in seconds.

    Raises
    ------
    BadInputError
        If there is no example, or a time is negative or no number.
    """
    choices: list[tuple[Sequence[Features], int]] = []
    for moment, gap_s in examples:
        _check(moment, gap_s)
        reached = [i for i, edge in enumerate(EDGES_S) if edge <= gap_s]
        choices += [((_features(moment, i), {}), int(i != reached[-1])) for i in reached]
    return DelayModel(fit_choices(choices, FEATURES, ridge, {}))


def _features(moment: Moment, piece: int) -> Features:
    gaps = [math.log1p(gap) - TYPICAL for gap in moment.gaps_s[-RECENT:]]
    habits = {
        "usual gap": sum(gaps) / (len(gaps) + 2),
        "last gap": gaps[-1] if gaps else 0.0,
        "last run": math.log1p(moment.last_run_s),
    }
    found = {f"from {EDGES_S[piece]} s": 1.0, **habits}
    if piece < FAST:
        found.update((f"{habit}, at once", value) for habit, value in habits.items())
    if moment.moved is None:
        found["first run"] = 1.0
    elif moment.moved < 0:
        found["went back"] = 1.0
    elif moment.moved == 1:
        found["went on"] = 1.0
    return found


def _check(moment: Moment, gap_s: float) -> None:
    for value in (*moment.gaps_s, moment.last_run_s, gap_s):
        if not (math.isfinite(value) and value >= 0):
            raise BadInputError(f"{NAME}: a time of {value} s; times are finite and not negative")
