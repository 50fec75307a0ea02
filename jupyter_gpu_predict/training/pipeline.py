"""From the trace store to a new version of a model: collect, train, score, keep, let serve."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

from ..core.forecast.backtest import choose_origins, score
from ..core.forecast.boosted import Boosted
from ..core.forecast.demand_model import KIND, demand_model, demand_record
from ..core.forecast.empirical import Empirical
from ..core.forecast.protocol import Forecaster
from ..core.model import HORIZONS_S, STEP_S, Backtest, CellRun, DemandSample
from ..core.trace.records import end_of
from ..core.trace.series import DemandSeries, demand_series
from ..errors import BadInputError
from .demand import Examples, UseSeries, examples, train_classifier
from .registry import ModelRegistry, ModelVersion

MAX_RUNS = 1_000_000

DAY_STEPS = 86_400 // STEP_S
"""Of a kernel that lived longer than a day, the last day counts."""

HELD_OUT = 0.25
"""Share of owners that a model is scored on and has never seen."""

MIN_OWNERS = 4
"""Owners below which nobody can be held out."""

SCORED_ORIGINS = 20

METRICS = ("pinball", "coverage", "brier")

Progress = Callable[[str, float], None]


class Traces(Protocol):
    """What is read from a trace store."""

    def cell_runs(self, *, limit: int) -> list[CellRun]:
        """Return the latest cell runs, oldest first."""

    def demand(self, kernel_id: str, *, since_s: float) -> list[DemandSample]:
        """Return a kernel's demand samples, oldest first."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a training: the version written, and whether and why it serves."""

    version: ModelVersion
    promoted: bool
    why: str


def collect(traces: Traces) -> list[tuple[str, DemandSeries]]:
    """Return every kernel's demand with its owner: its notebook, else the kernel itself."""
    by_kernel: dict[str, list[CellRun]] = {}
    for run in traces.cell_runs(limit=MAX_RUNS):
        by_kernel.setdefault(run.kernel_id, []).append(run)
    found = []
    for kernel_id, runs in sorted(by_kernel.items()):
        owner = next((r.notebook for r in reversed(runs) if r.notebook), kernel_id)
        samples = traces.demand(kernel_id, since_s=-math.inf)
        last_s = max([end_of(run) for run in runs] + [s.t_s for s in samples])
        series = demand_series(samples, runs, now_s=last_s, max_steps=DAY_STEPS)
        if any(series.need):
            found.append((owner, series))
    return found


def train_demand(
    traces: Traces,
    registry: ModelRegistry,
    *,
    now_s: float,
    seed: int = 1,
    promote: bool = True,
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train the demand model on all kernels of a trace store.

    It is scored on owners held out, where it serves only if it is no worse than the empirical
    model in both pinball loss and Brier score; the version kept is then trained on all of them.

    Parameters
    ----------
    traces
        Where from.
    registry
        Where to.
    now_s
        When, in seconds since the epoch.
    seed
        Of every choice at random: the same data and seed give the same model.
    promote
        Whether it may serve.
    progress
        Called with what is done now and the share that is behind, 0 to 1.

    Raises
    ------
    BadInputError
        If there is too little to learn from.
    """
    progress("read the traces", 0.0)
    known = collect(traces)
    owners = sorted({owner for owner, _ in known})
    if len(owners) < MIN_OWNERS:
        raise BadInputError(
            f"training: {len(owners)} notebooks that used a GPU are in the trace store, "
            f"{MIN_OWNERS} are needed"
        )
    progress("compute features", 0.1)
    steps = tuple(math.ceil(h / STEP_S) for h in HORIZONS_S)
    data = examples(
        (UseSeries(owner, s.memory_bytes, s.need, s.step_s) for owner, s in known), steps, seed=seed
    )
    progress("train without the held-out notebooks", 0.4)
    held = held_out(owners, seed)
    tested = [series for owner, series in known if owner in held]
    import numpy as np

    trial = _fitted(data.chosen(~np.isin(data.owners, sorted(held))), seed)
    progress("score on the held-out notebooks", 0.6)
    found = mean_scores(tested, (Empirical(), Boosted(demand_model(trial, "on trial"))))
    progress("train on all", 0.8)
    scores, baseline = found.get("boosted", {}), found.get("empirical", {})
    about = ModelVersion(
        KIND,
        version=0,
        made_s=now_s,
        seed=seed,
        data_hash=data_hash(known),
        examples=len(data),
        owners=len(owners),
        scores=scores,
        baseline=baseline,
    )
    done = kept(
        registry,
        _fitted(data, seed),
        about,
        why_not_serve(scores, baseline),
        promote=promote,
        good="no worse than the empirical model on notebooks it has not seen",
    )
    progress("done", 1.0)
    return done


def kept(
    registry: ModelRegistry,
    record: Mapping[str, Any],
    about: ModelVersion,
    why_not: str | None,
    *,
    promote: bool,
    good: str,
) -> Trained:
    """Keep a version and let it serve, if it may and nothing is against it; `good` says why."""
    version = registry.add(record, about)
    if why_not is not None:
        return Trained(version, False, why_not)
    if promote:
        registry.promote(version.kind, version.version)
    return Trained(version, promote, good)


def held_out(owners: Sequence[str], seed: int) -> set[str]:
    """Return the owners that a model is scored on, chosen by a hash of their names."""

    def rank(owner: str) -> bytes:
        return blake2b(f"{seed}:{owner}".encode("utf-8", "surrogatepass")).digest()

    count = max(1, round(HELD_OUT * len(owners)))
    return set(sorted(owners, key=rank)[:count])


def mean_scores(
    tested: Sequence[DemandSeries], models: Sequence[Forecaster]
) -> dict[str, dict[str, float]]:
    """Return the mean backtest of each model over the series in which all could be scored."""
    kept: dict[str, list[Backtest]] = {model.name: [] for model in models}
    for series in tested:
        origins = choose_origins(len(series), SCORED_ORIGINS)
        if not origins:
            continue
        backtests = {b.model: b for b in score(series, models, origins).backtests}
        if len(backtests) == len(models):
            for name, one in backtests.items():
                kept[name].append(one)
    return {
        name: {metric: sum(getattr(b, metric) for b in found) / len(found) for metric in METRICS}
        for name, found in kept.items()
        if found
    }


def why_not_serve(scores: Mapping[str, float], baseline: Mapping[str, float]) -> str | None:
    """Return why a model should not serve beside a baseline, ``None`` if it may."""
    if not scores or not baseline:
        return "no held-out notebook is long enough to score it"
    for metric in ("pinball", "brier"):
        if scores[metric] > baseline[metric]:
            return (
                f"its {metric} on notebooks it has not seen is {scores[metric]:.4f}, the empirical "
                f"model's {baseline[metric]:.4f}"
            )
    return None


def data_hash(known: Sequence[tuple[str, DemandSeries]]) -> str:
    """Return a digest of all that a model is trained on."""
    digest = blake2b(digest_size=16)
    for owner, series in known:
        digest.update(repr((owner, series.start_s, series.memory_bytes, series.need)).encode())
    return digest.hexdigest()


def _fitted(data: Examples, seed: int) -> dict[str, object]:
    return demand_record(
        train_classifier(data.features, data.at, seed=seed),
        train_classifier(data.features, data.within, seed=seed),
    )
