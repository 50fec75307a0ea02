"""Scores of probabilities, and intervals by bootstrap over sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SEED = 1


def auc(happened: np.ndarray, said: np.ndarray) -> float:
    """Return the chance that what happened was said likelier than what did not (ties: half)."""
    _, ranks, counts = np.unique(said, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    positives = int(happened.sum())
    negatives = len(happened) - positives
    if not positives or not negatives:
        return float("nan")
    total = middle[ranks][happened].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def brier_skill(happened: np.ndarray, said: np.ndarray) -> float:
    """Return 1 - Brier score / that of always saying how often it happened in all."""
    base = happened.mean()
    return float(1 - ((said - happened) ** 2).mean() / (base * (1 - base)))


def interval(
    groups: Sequence[str], score: Callable[[np.ndarray], float], rounds: int
) -> tuple[float, float]:
    """Return the 95 % interval of a score of rows, drawing whole groups with replacement."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(inverse == i) for i in range(len(names))]
    random = np.random.default_rng(SEED)
    found = []
    for _ in range(rounds):
        drawn = random.integers(0, len(names), len(names))
        found.append(score(np.concatenate([members[i] for i in drawn])))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)
