"""Demand: how well the learned model says when, and how much, a series will be in use.

Every model answers at the same origins: up to 12 in each test series, in its last 40 %, with at
least three bursts in the 500 steps before; those next to an unknown value are dropped and counted.
Training sees either other owners only ("users") or only what came before all origins ("time").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jupyter_gpu_predict.core.forecast.demand_model import DemandModel
from jupyter_gpu_predict.core.forecast.occupancy import occupancy_features
from jupyter_gpu_predict.training.demand import (
    MOMENTS,
    Examples,
    UseSeries,
    examples,
    train_classifier,
)

AHEAD = tuple(range(1, 13))
PAST = 500
LEVELS = np.array([0.1, 0.5, 0.9])
ORIGINS = 12
BURSTS = 3
TEST_FROM = 0.6
SERIES_PER_GROUP = 10
FOLDS = 4
EMPIRICAL = 60
QUICK_MOMENTS = 8
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Origin:
    """A moment at which a series is forecast; `index` numbers the series."""

    index: int
    group: str
    series: UseSeries
    at: int

    def past(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the levels and the busy flags before it."""
        span = slice(self.at - PAST, self.at)
        return np.asarray(self.series.levels)[span], np.asarray(self.series.busy)[span]

    def future(self) -> np.ndarray:
        """Return the levels that came."""
        return np.asarray(self.series.levels)[self.at : self.at + len(AHEAD)]


@dataclass(frozen=True)
class Said:
    """What was said of one origin: P(busy) and quantiles for each step ahead."""

    busy: np.ndarray
    quantiles: np.ndarray


def test_origins(groups: Mapping[str, Sequence[UseSeries]]) -> tuple[list[Origin], int]:
    """Return where models are compared, and how many origins were dropped for unknown values."""
    found, dropped, index = [], 0, 0
    for group, members in groups.items():
        chosen = []
        for one in members:
            begins = np.concatenate(([0], np.cumsum(np.diff(np.asarray(one.busy)) == 1)))
            first = max(PAST, int(TEST_FROM * len(one.busy)))
            at = np.arange(first, len(one.busy) - len(AHEAD))
            at = at[begins[at - 1] - begins[at - PAST] >= BURSTS]
            if len(at) >= ORIGINS:
                chosen.append((-int(begins[-1]), one.owner, one, at))
        chosen.sort(key=lambda c: c[:2])
        for *_, one, at in chosen[:SERIES_PER_GROUP]:
            for o in at[np.linspace(0, len(at) - 1, ORIGINS).astype(int)]:
                origin = Origin(index, group, one, int(o))
                if np.isnan(origin.past()[0]).any() or np.isnan(origin.future()).any():
                    dropped += 1
                else:
                    found.append(origin)
            index += 1
    return found, dropped


def empirical(origin: Origin) -> Said:
    levels, busy = origin.past()
    quantiles = np.quantile(levels[-EMPIRICAL:], LEVELS)
    share = busy[-EMPIRICAL:].mean()
    return Said(np.full(len(AHEAD), share), np.tile(quantiles, (len(AHEAD), 1)))


def boosted(model: DemandModel, origin: Origin) -> Said:
    levels, busy = origin.past()
    features = occupancy_features(levels, busy, origin.series.step_s, AHEAD)
    chance = np.array(model.busy_at(features))
    return Said(chance, np.array([mixed(p, levels[busy == 1]) for p in chance]))


def mixed(chance: float, used: np.ndarray) -> np.ndarray:
    """Return the quantiles of nothing with 1 - `chance`, else of a level that was in use."""
    inner = np.clip((LEVELS - (1 - chance)) / max(chance, 1e-9), 0, 1)
    return np.where(1 - chance >= LEVELS, 0.0, np.quantile(used, inner))


def pinball(actual: np.ndarray, said: Said) -> float:
    apart = actual[:, None] - said.quantiles
    return float(np.maximum(LEVELS * apart, (LEVELS - 1) * apart).mean())


def trained(data: Examples, seed: int) -> DemandModel:
    return DemandModel(
        "benchmark",
        train_classifier(data.features, data.at, seed=seed),
        train_classifier(data.features, data.within, seed=seed),
    )


def by_users(
    origins: Sequence[Origin], groups: Mapping[str, Sequence[UseSeries]], seed: int, quick: bool
) -> list[Said]:
    """Answer each origin by a model that has seen none of its owner's series."""
    moments = QUICK_MOMENTS if quick else MOMENTS
    every = [s for members in groups.values() for s in members]
    data = examples(every, AHEAD, seed=seed, moments=moments)
    owners = sorted({o.series.owner for o in origins})
    said: dict[int, Said] = {}
    for fold in np.array_split(
        np.random.default_rng(seed).permutation(owners), 2 if quick else FOLDS
    ):
        model = trained(data.chosen(~np.isin(data.owners, fold)), seed)
        held = set(fold)
        for i, origin in enumerate(origins):
            if origin.series.owner in held:
                said[i] = boosted(model, origin)
    return [said[i] for i in range(len(origins))]


def by_time(
    origins: Sequence[Origin], groups: Mapping[str, Sequence[UseSeries]], seed: int, quick: bool
) -> list[Said]:
    """Answer each origin by a model that has seen only the first part of every series."""
    early = []
    for members in groups.values():
        for one in members:
            end = int(TEST_FROM * len(one.busy))
            early.append(UseSeries(one.owner, one.levels[:end], one.busy[:end], one.step_s))
    moments = QUICK_MOMENTS if quick else MOMENTS
    model = trained(examples(early, AHEAD, seed=seed, moments=moments), seed)
    return [boosted(model, origin) for origin in origins]


SPLITS = {"users": by_users, "time": by_time}


def demand_rows(
    groups: Mapping[str, Sequence[UseSeries]],
    splits: Sequence[str] = tuple(SPLITS),
    *,
    quick: bool = False,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """Return the figures of each split; a quick look trains on fewer moments, in two folds."""
    origins, dropped = test_origins(groups)
    base = [empirical(o) for o in origins]
    found = [_row("demand", "all", "origins", len(origins), "origins")]
    found.append(_row("demand", "all", "origins dropped for unknown values", dropped, "origins"))
    found += scored("demand", "empirical 60", origins, base, base)
    for split in splits:
        said = SPLITS[split](origins, groups, seed, quick)
        found += scored(f"demand, split by {split}", "boosted", origins, said, base)
    return found


def scored(
    case: str, method: str, origins: Sequence[Origin], said: Sequence[Said], base: Sequence[Said]
) -> list[dict[str, Any]]:
    losses = np.array([pinball(o.future(), s) for o, s in zip(origins, said, strict=True)])
    others = np.array([pinball(o.future(), s) for o, s in zip(origins, base, strict=True)])
    index = np.array([o.index for o in origins])
    ours = np.bincount(index, losses)
    theirs = np.bincount(index, others)
    found = [_row(case, method, "pinball", losses.mean(), "of capacity")]
    if said is not base:
        draws = np.random.default_rng(0).integers(0, len(ours), (BOOTSTRAPS, len(ours)))
        ratios = ours[draws].sum(1) / theirs[draws].sum(1)
        name = "pinball / empirical 60"
        found.append(_row(case, method, name, losses.sum() / others.sum(), ""))
        found.append(_row(case, method, f"{name}, low", np.quantile(ratios, 0.025), ""))
        found.append(_row(case, method, f"{name}, high", np.quantile(ratios, 0.975), ""))
        for group in dict.fromkeys(o.group for o in origins):
            mine = np.array([o.group == group for o in origins])
            ratio = losses[mine].sum() / others[mine].sum()
            found.append(_row(f"{case}: {group}", method, name, ratio, ""))
    chance = np.concatenate([s.busy for s in said])
    actual = np.concatenate([o.future() for o in origins])
    busy = np.concatenate([np.asarray(o.series.busy)[o.at : o.at + len(AHEAD)] for o in origins])
    bins = np.minimum((chance * 10).astype(int), 9)
    reliability = sum(
        abs(chance[bins == k].mean() - busy[bins == k].mean()) * (bins == k).mean()
        for k in set(bins.tolist())
    )
    found.append(_row(case, method, "P(busy): reliability error", reliability, ""))
    found.append(_row(case, method, "P(busy): Brier", ((chance - busy) ** 2).mean(), ""))
    if said is not base:
        used = [p[b == 1] for p, b in (o.past() for o in origins)]
        places = placed(actual, chance, [u for u in used for _ in AHEAD])
        inside = ((places >= LEVELS[0]) & (places <= LEVELS[-1])).mean()
        found.append(_row(case, method, "randomised PIT: 80 % coverage", inside, ""))
    return found


def placed(actual: np.ndarray, chance: np.ndarray, used: Sequence[np.ndarray]) -> np.ndarray:
    """Return where actual values lie in what was said of them, ties broken at random (PIT)."""
    rng = np.random.default_rng(0)
    found = []
    for value, p, levels in zip(actual, chance, used, strict=True):
        below, upto = (levels < value).mean(), (levels <= value).mean()
        low = 0.0 if value <= 0 else (1 - p) + p * below
        high = (1 - p) + p * upto
        found.append(rng.uniform(low, max(low, high)))
    return np.array(found)


def _row(case: str, method: str, metric: str, value: float, unit: str) -> dict[str, Any]:
    return {"case": case, "method": method, "metric": metric, "value": float(value), "unit": unit}
