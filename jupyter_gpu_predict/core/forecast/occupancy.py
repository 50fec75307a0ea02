"""What the past of a series says about whether it will be busy: features for learned models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from ...errors import BadInputError

Array: TypeAlias = Any
"""A numpy array; numpy is imported where it is used, which is never in the server's process."""

MAX_PAST_STEPS = 500
"""Steps of the past that are looked at."""

MIN_PAST_STEPS = 8
"""Steps below which there is nothing to go by: what a backtest's first origin leaves."""

SHARES = (5, 10, 20, 60, 150, 500)
"""Windows, in steps, of the share of busy steps."""

LIKE_NOW = 1.5
"""Earlier moments count as like now if their run was as old up to this factor."""

RECENT_MOMENTS = 40
"""Of the moments like now, the latest that are counted apart."""

_RUN = ("mean", "spread", "median", "last", "late_mean", "late_spread")

FEATURES = (
    "busy",
    *(f"level_{i}" for i in (1, 2, 3)),
    "age",
    "step_s",
    *(f"busy_share_{k}" for k in SHARES),
    *(f"runs_like_{name}" for name in _RUN),
    *(f"runs_other_{name}" for name in _RUN),
    "runs_like",
    "busy_pairs",
    "steps",
    "ahead_s",
    "ended",
    "busy_after",
    "busy_after_late",
    "busy_within",
    "runs_as_old",
    "moments_like",
)
"""Names of the columns, in order; a model file names those it was trained on."""


def occupancy_features(
    levels: Sequence[float], busy: Sequence[int], step_s: float, ahead: Sequence[int]
) -> Array:
    """Return the features of a moment, a row for each number of steps ahead.

    A *run* is an unbroken stretch of busy or of idle steps. Besides shares, levels and lengths of
    runs there are the shares of earlier runs that ended, and of earlier moments like now that were
    busy, that many steps later. All of it is free of the unit of `levels`.

    Parameters
    ----------
    levels
        What was in use in each step up to now, in any unit; NaN where it is not known.
    busy
        1 where the step was busy, else 0.
    step_s
        Length of a step in seconds.
    ahead
        Steps ahead, ascending, each at least 1.

    Returns
    -------
    array of shape ``(len(ahead), len(FEATURES))``
        NaN where the past does not say.

    Raises
    ------
    BadInputError
        If the past is shorter than :data:`MIN_PAST_STEPS`, or the lengths differ.
    """
    import numpy as np

    if len(levels) != len(busy):
        raise BadInputError(
            f"features: {len(levels)} levels but {len(busy)} busy flags; give both the same length"
        )
    if len(busy) < MIN_PAST_STEPS:
        raise BadInputError(
            f"features: a past of {len(busy)} steps; at least {MIN_PAST_STEPS} are needed"
        )
    flags = np.asarray(busy[-MAX_PAST_STEPS:], dtype=np.int64)
    level = np.asarray(levels[-MAX_PAST_STEPS:], dtype=float)
    now = int(flags[-1])
    changes: Array = np.flatnonzero(np.diff(flags)) + 1
    begins = np.concatenate(([0], changes))
    lengths = np.diff(np.concatenate((begins, [len(flags)])))
    kinds = flags[begins]
    age = int(lengths[-1])
    # The first run began before the series did, the last is not over: neither has a length.
    whole, whole_kinds = lengths[1:-1], kinds[1:-1]
    like, other = whole[whole_kinds == now], whole[whole_kinds != now]
    top = float(np.nanmax(level, initial=0.0)) or 1.0
    known = [
        now,
        *(level[-i] / top for i in (1, 2, 3)),
        math.log1p(age),
        math.log(step_s),
        *(float(flags[-k:].mean()) for k in SHARES),
        *_run_features(like),
        *_run_features(other),
        len(like),
        float((flags[-61:-1] * flags[-60:]).mean()) if len(flags) > 61 else math.nan,
    ]
    ages = np.concatenate([np.arange(1, n + 1) for n in lengths])
    rows = np.empty((len(ahead), len(FEATURES)))
    rows[:, : len(known)] = known
    rows[:, len(known) :] = _ahead_features(flags, ages, like, ahead, step_s)
    return rows


def _run_features(lengths: Array) -> list[float]:
    import numpy as np

    if not len(lengths):
        return [math.nan] * len(_RUN)
    logs = np.log(lengths)
    late = logs[-5:]
    found = (logs.mean(), logs.std(), np.median(logs), logs[-1], late.mean(), late.std())
    return [float(value) for value in found]


def _ahead_features(
    flags: Array, ages: Array, like: Array, ahead: Sequence[int], step_s: float
) -> Array:
    """Return the columns that depend on how far ahead one looks."""
    import numpy as np

    age, last = int(ages[-1]), len(flags) - 1
    old = like[like >= age]
    moments = np.flatnonzero(
        (flags == flags[-1]) & (ages >= age / LIKE_NOW) & (ages <= age * LIKE_NOW + 0.5)
    )
    sums = np.concatenate(([0], np.cumsum(flags)))
    rows = []
    for steps in ahead:
        past = moments[moments + steps <= last]
        late = past[-RECENT_MOMENTS:]
        within = sums[past + steps + 1] - sums[past + 1] > 0
        rows.append(
            (
                steps,
                math.log(steps * step_s),
                _share(int((old < age + steps).sum()), len(old)),
                _share(int(flags[past + steps].sum()), len(past)),
                _share(int(flags[late + steps].sum()), len(late)),
                _share(int(within.sum()), len(past)),
                len(old),
                len(past),
            )
        )
    return np.array(rows, dtype=float)


def _share(hits: int, of: int) -> float:
    """Return a share with Jeffreys' prior, NaN of nothing."""
    return (hits + 0.5) / (of + 1) if of else math.nan
