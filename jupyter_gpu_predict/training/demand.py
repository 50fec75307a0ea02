"""Training of the demand model: when a series is busy, learned from other series."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.forecast.occupancy import (
    FEATURES,
    MAX_PAST_STEPS,
    MIN_PAST_STEPS,
    Array,
    occupancy_features,
)
from ..errors import BadInputError

ROUNDS = 200
"""Trees of a classifier; more of them at a lower rate did not score better on held-out series."""

PARAMETERS = {
    "objective": "binary",
    "num_leaves": 15,
    "learning_rate": 0.05,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    # The same data and seed give the same model, on any number of cores.
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}

MOMENTS = 40
"""Moments taken from one series: its own are alike, so many more of them teach little."""

MIN_EXAMPLES = 2000
"""Rows below which nothing is trained: 15 trees' leaves of 100 rows would not be filled."""


@dataclass(frozen=True, slots=True)
class UseSeries:
    """When something was in use, on a regular grid.

    `levels` is how much of it in any unit, NaN where not known; `busy` is 1 where it was busy.
    `owner` is who used it: training and testing never share an owner.
    """

    owner: str
    levels: Sequence[float]
    busy: Sequence[int]
    step_s: float


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of features with what then happened; `owners` holds one name per row."""

    features: Array
    at: Array
    within: Array
    owners: Array

    def __len__(self) -> int:
        return len(self.at)

    def chosen(self, mask: Array) -> Examples:
        """Return the rows where `mask` is true."""
        return Examples(self.features[mask], self.at[mask], self.within[mask], self.owners[mask])


def examples(
    series: Iterable[UseSeries],
    ahead: Sequence[int],
    *,
    seed: int,
    moments: int = MOMENTS,
    min_past: int = MIN_PAST_STEPS,
) -> Examples:
    """Return examples from moments of `series`, chosen at random.

    A moment with an unknown level in its past or in what follows is not taken, nor one of a series
    that was never busy before it.

    Parameters
    ----------
    series
        Where from.
    ahead
        Steps ahead to ask for, ascending.
    seed
        Of the choice.
    moments
        At most that many of each series.
    min_past
        Steps that lie before a moment at least.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    found: list[tuple[Array, Array, Array, str]] = []
    for one in series:
        levels = np.asarray(one.levels, dtype=float)
        busy = np.asarray(one.busy, dtype=np.int64)
        last = len(busy) - ahead[-1]
        if last <= min_past:
            continue
        origins = np.arange(min_past, last)
        known = np.concatenate(([0], np.cumsum(np.isnan(levels))))
        ever = np.concatenate(([0], np.cumsum(busy)))
        begins = np.maximum(0, origins - MAX_PAST_STEPS)
        usable = origins[
            (known[origins + ahead[-1]] == known[begins]) & (ever[origins] > ever[begins])
        ]
        taken = rng.choice(usable, min(len(usable), moments), replace=False)
        for origin in sorted(int(o) for o in taken):
            past = slice(max(0, origin - MAX_PAST_STEPS), origin)
            rows = occupancy_features(levels[past], busy[past], one.step_s, ahead)
            after = busy[origin : origin + ahead[-1]]
            at = after[np.asarray(ahead) - 1]
            within = np.maximum.accumulate(after)[np.asarray(ahead) - 1]
            found.append((rows, at, within, one.owner))
    if not found:
        return Examples(np.empty((0, len(FEATURES))), *(np.empty(0) for _ in range(3)))
    return Examples(
        np.concatenate([rows for rows, *_ in found]),
        np.concatenate([at for _, at, _, _ in found]),
        np.concatenate([within for _, _, within, _ in found]),
        np.repeat([owner for *_, owner in found], len(ahead)),
    )


def train_classifier(features: Array, labels: Array, *, seed: int, rounds: int = ROUNDS) -> Any:
    """Return a classifier of P(label) trained with LightGBM.

    Raises
    ------
    BadInputError
        If there are too few examples, or all have the same label.
    """
    import lightgbm

    if len(labels) < MIN_EXAMPLES:
        raise BadInputError(
            f"training: {len(labels)} examples, {MIN_EXAMPLES} are needed; let more kernels run"
        )
    if len(set(labels.tolist())) < 2:
        raise BadInputError("training: all examples are alike, there is nothing to tell apart")
    data = lightgbm.Dataset(features, labels)
    return lightgbm.train({**PARAMETERS, "seed": seed}, data, rounds)
