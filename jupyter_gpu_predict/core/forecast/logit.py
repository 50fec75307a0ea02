"""The conditional logit model: a choice of one among several, each with its features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ...errors import BadInputError, ModelFileError

Features = Mapping[str, float]
"""What is not zero of an alternative's features, by name."""

MAX_STEPS = 100


def utility(weights: Mapping[str, float], features: Features) -> float:
    """Return the weighted sum of an alternative's features."""
    return sum(weights[name] * value for name, value in features.items())


def shares(utilities: Sequence[float]) -> list[float]:
    """Return the probabilities of alternatives with these utilities."""
    top = max(utilities)
    raised = [math.exp(u - top) for u in utilities]
    total = sum(raised)
    return [r / total for r in raised]


def chance(log_odds: float) -> float:
    """Return the probability of a yes with these log odds."""
    return shares((log_odds, 0.0))[0]


def check_weights(
    record: Mapping[str, float], names: Sequence[str], owner: str
) -> dict[str, float]:
    """Return weights as floats if they are finite and of just these features.

    Raises
    ------
    ModelFileError
        If they are not.
    """
    if set(record) != set(names):
        other = sorted(set(record) ^ set(names))
        raise ModelFileError(f"{owner}: trained on other features ({', '.join(other)}); train anew")
    try:
        weights = {name: float(record[name]) for name in names}
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{owner}: a weight is no number ({error}); train anew") from error
    if not all(map(math.isfinite, weights.values())):
        raise ModelFileError(f"{owner}: a weight is not finite; train anew")
    return weights


def fit_choices(
    choices: Sequence[tuple[Sequence[Features], int]],
    names: Sequence[str],
    ridge: float,
    prior: Mapping[str, float],
) -> dict[str, float]:
    """Return the weights under which these choices were likeliest (McFadden 1974).

    Needs numpy, so it is called where models are trained.

    Parameters
    ----------
    choices
        The alternatives' features, and which of them was chosen.
    names
        Of the features.
    ridge
        Penalty on the squared distance of a weight from its prior; positive.
    prior
        Weights expected before any data; 0 where there is none. A feature that no choice has keeps
        its own.

    Raises
    ------
    BadInputError
        If there is no choice to learn from.
    """
    if not choices:
        raise BadInputError("training: there is not one choice to learn from; give more sessions")
    import numpy as np

    column = {name: i for i, name in enumerate(names)}
    starts = np.cumsum([0, *(len(group) for group, _ in choices[:-1])])
    sizes = np.array([len(group) for group, _ in choices])
    x = np.zeros((int(sizes.sum()), len(names)))
    rows = (alternative for group, _ in choices for alternative in group)
    for i, alternative in enumerate(rows):
        for name, value in alternative.items():
            x[i, column[name]] = value
    chosen = starts + np.array([which for _, which in choices])
    centre = np.array([prior.get(name, 0.0) for name in names])

    def shares_at(weights: np.ndarray) -> tuple[np.ndarray, float]:
        u = x @ weights
        u -= np.repeat(np.maximum.reduceat(u, starts), sizes)
        e = np.exp(u)
        total = np.add.reduceat(e, starts)
        loss = float((np.log(total) - u[chosen]).sum() + ridge * ((weights - centre) ** 2).sum())
        return e / np.repeat(total, sizes), loss

    weights = centre.copy()
    p, loss = shares_at(weights)
    for _ in range(MAX_STEPS):
        gradient = x.T @ p - x[chosen].sum(axis=0) + 2 * ridge * (weights - centre)
        means = np.add.reduceat(x * p[:, None], starts, axis=0)
        # Not with `@`: the threads of a BLAS wait for each other where other work has the cores.
        curve = np.einsum("i,ij,ik->jk", p, x, x) - np.einsum("ij,ik->jk", means, means)
        curve += 2 * ridge * np.eye(len(names))
        step = np.linalg.solve(curve, gradient)
        scale = 1.0
        # Newton's step may overshoot far from the optimum; the loss is convex, so half of it helps.
        while scale > 1e-6 and shares_at(weights - scale * step)[1] > loss:
            scale /= 2
        weights = weights - scale * step
        before = loss
        p, loss = shares_at(weights)
        if before - loss < 1e-9 * (1 + abs(loss)):
            break
    return {name: float(w) for name, w in zip(names, weights, strict=True)}
