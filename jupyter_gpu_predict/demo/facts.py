"""The facts of a demo run, counted from the event log of what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WAITED_S = 0.25
"""A claim granted sooner than this did not wait: it is the time of one decision."""

Event = Mapping[str, Any]


@dataclass
class Claims:
    """Claims and how long the granted ones waited, in seconds."""

    total: int
    waited: int
    p50_wait_s: float
    p95_wait_s: float
    max_wait_s: float


@dataclass
class Facts:
    """What `jupyter gpu demo --json` writes."""

    simulated: bool
    gpus: int
    kernels: int
    cells: int
    forecasts: int
    forecast_models: dict[str, int]
    prebinds: int
    prebind_hits: int
    claims: Claims
    reclaims: int
    reclaimed_bytes: int
    restores: int
    snapshots: int
    migrations: int
    state_checked: int
    state_equal: int
    kernels_lost: int
    cells_failed: int
    wall_s: float
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def shortfalls(self) -> list[str]:
        """Return what the run should have shown and did not, in sentences."""
        wanted = [
            (self.prebind_hits >= 1, "no pre-bind was used by a cell"),
            (self.reclaims >= 2, f"{self.reclaims} reclaims, at least 2 were expected"),
            (self.restores >= 2, f"{self.restores} restores, at least 2 were expected"),
            (self.migrations >= 1, "no kernel was migrated"),
            (self.kernels_lost == 0, f"{self.kernels_lost} kernels were lost"),
            (self.cells_failed == 0, f"{self.cells_failed} cells failed"),
            (self.state_checked > 20, f"only {self.state_checked} pieces of state were compared"),
            (
                self.state_equal == self.state_checked,
                f"{self.state_checked - self.state_equal} pieces of state differ from a plain run",
            ),
        ]
        return [said for fine, said in wanted if not fine] + self.faults


def count(events: Sequence[Event], **others: Any) -> Facts:
    """Return the facts that `events` hold, with `others` that only the driver knows."""
    kinds = Counter(e["kind"] for e in events)
    waits = sorted(
        float(e["waited_s"]) for e in events if e["kind"] == "bound" and e.get("origin") == "cell"
    )
    return Facts(
        forecasts=kinds["forecast"],
        forecast_models=dict(Counter(e["model"] for e in events if e["kind"] == "forecast")),
        prebinds=kinds["prebound"],
        prebind_hits=kinds["prebind_hit"],
        claims=Claims(
            total=kinds["claim"],
            waited=sum(w > WAITED_S for w in waits),
            p50_wait_s=_quantile(waits, 0.5),
            p95_wait_s=_quantile(waits, 0.95),
            max_wait_s=waits[-1] if waits else 0.0,
        ),
        reclaims=kinds["reclaimed"],
        reclaimed_bytes=sum(int(e["bytes"]) for e in events if e["kind"] == "reclaimed"),
        restores=kinds["restored"],
        snapshots=kinds["snapshot"],
        migrations=kinds["migrated"],
        **others,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return the nearest-rank quantile of values in order; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
