"""Next cell: how often the likeliest one is the right one, beside the next one of the document.

Sessions without run-all, at each end of a run where no request was queued; each owner's by a model
that was fitted on all others.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from jupyter_gpu_predict.core.forecast.next_cell import NextCellModel, fit

from .notebooks import Session
from .scoring import interval


def fit_cells(sessions: list[Session]) -> NextCellModel:
    return fit((trail, then.position) for s in sessions for _, trail, _, then in s.moves())


def next_cell_rows(sessions: list[Session], case: str, rounds: int) -> list[dict[str, Any]]:
    model, rule, groups, whose, loss = [], [], [], [], 0.0
    for owner in sorted({s.owner for s in sessions}):
        fitted = fit_cells([s for s in sessions if s.owner != owner])
        for session in (s for s in sessions if s.owner == owner):
            for _, trail, _, then in session.moves():
                said = fitted.forecast(trail)
                model.append(said[0].position == then.position)
                rule.append(trail.positions[-1] + 1 == then.position)
                chance = {c.position: c.probability for c in said}.get(then.position, 0.0)
                loss -= float(np.log(max(chance, 1e-6)))
                groups.append(session.name)
                whose.append(owner)
    right, ruled = np.array(model, float), np.array(rule, float)
    gain = right - ruled
    (busiest, most), *_ = Counter(whose).most_common(1)
    others = gain[np.array(whose) != busiest]
    low, high = interval(groups, lambda rows: float(gain[rows].mean()), rounds)

    def row(method: str, metric: str, value: float, unit: str = "") -> dict[str, Any]:
        return {"case": case, "method": method, "metric": metric, "value": value, "unit": unit}

    return [
        row("next of the document", "top-1", float(ruled.mean())),
        row("next-cell model", "top-1", float(right.mean())),
        row("next-cell model", "top-1 gain", float(gain.mean())),
        row("next-cell model", "top-1 gain, 2.5 %", low),
        row("next-cell model", "top-1 gain, 97.5 %", high),
        row("next-cell model", "top-1 gain, less busiest owner", float(others.mean())),
        row("next-cell model", "mean log loss", loss / len(groups), "nats"),
        row("all", "moves", len(groups), "count"),
        row("all", "sessions", len(set(groups)), "count"),
        row("all", "owners", len(set(whose)), "count"),
        row("all", "moves of the busiest owner", most, "count"),
    ]
