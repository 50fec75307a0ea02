"""GPU soon: P(a GPU cell starts within 30 s) at several idle ages, beside timing alone.

GPU notebooks without run-all, no request queued. Which cells of the document use the GPU is known
ahead, as it is to the server, which reads the sources; the trace guessed it from them in the same
way. Each owner's moments are forecast by models that were fitted on all others.

Timing alone is the better of two: a logit, fitted to this question on the same population, of what
the delay model sees and the idle age; and the delay model's own P(any cell starts).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jupyter_gpu_predict.core.forecast.content import ContentModel, Situation, forecast_content
from jupyter_gpu_predict.core.forecast.delay import DelayModel, Moment
from jupyter_gpu_predict.core.forecast.delay import fit as fit_delays
from jupyter_gpu_predict.core.forecast.demand import CellDemand
from jupyter_gpu_predict.core.forecast.logit import chance, fit_choices, utility

from .next_cell import fit_cells
from .notebooks import Run, Session
from .scoring import auc, brier_skill, interval

AGES_S = (0, 5, 10, 20, 40, 80, 160, 320, 640)
HORIZON_S = 30
RIDGE = 1.0
TIMING = ("always", "age", "usual gap", "last gap", "last run", "runs", "went back", "went on")


@dataclass(frozen=True)
class Asked:
    """A moment of a session at which the question is put."""

    session: Session
    situation: Situation
    happened: bool

    def timing(self) -> dict[str, float]:
        """Return what is known of the time, and of nothing else."""
        moment = self.situation.moment
        gaps = [math.log1p(gap) for gap in moment.gaps_s]
        return {
            "always": 1.0,
            "age": math.log1p(self.situation.age_s),
            "usual gap": sum(gaps) / len(gaps) if gaps else 3.5,
            "last gap": gaps[-1] if gaps else 3.5,
            "last run": math.log1p(moment.last_run_s),
            "runs": math.log1p(len(gaps)),
            "went back": float((moment.moved or 0) < 0),
            "went on": float(moment.moved == 1),
        }


def fit_content(sessions: list[Session]) -> ContentModel:
    return ContentModel(fit_cells(sessions), fit_moments(sessions))


def fit_moments(sessions: list[Session]) -> DelayModel:
    return fit_delays(_delays(sessions))


def _delays(sessions: list[Session]) -> Iterator[tuple[Moment, float]]:
    for session in sessions:
        for i, _, moment, then in session.moves():
            yield moment, max(0.0, then.start_s - session.runs[i - 1].end_s)


def asked(session: Session) -> Iterator[Asked]:
    demands = tuple(CellDemand(gpu=float(gpu)) for gpu in session.gpu)
    for i, trail, moment, then in session.moves():
        ended_s = session.runs[i - 1].end_s
        for age in AGES_S:
            if age and ended_s + age >= then.start_s:
                break
            soon = _starts_gpu(session.runs[i:], ended_s + age)
            yield Asked(session, Situation(trail, demands, moment, float(age)), soon)


def _starts_gpu(runs: tuple[Run, ...], now_s: float) -> bool:
    return any(run.gpu and now_s <= run.start_s <= now_s + HORIZON_S for run in runs)


def gpu_soon_rows(sessions: list[Session], case: str, rounds: int) -> list[dict[str, Any]]:
    questions: list[Asked] = []
    content: list[float] = []
    logit: list[float] = []
    delay: list[float] = []
    for owner in sorted({s.owner for s in sessions}):
        others = [s for s in sessions if s.owner != owner]
        model = fit_content(others)
        weights = _timing_alone([q for s in others if s.gpu_notebook for q in asked(s)])
        own = [q for s in sessions if s.owner == owner and s.gpu_notebook for q in asked(s)]
        for question in own:
            said = forecast_content(model, question.situation, (HORIZON_S,))
            content.append(said.horizons[0].need_probability)
            logit.append(chance(utility(weights, question.timing())))
            situation = question.situation
            delayed = model.delays.forecast(situation.moment)
            delay.append(delayed.within(HORIZON_S, situation.age_s))
        questions += own
    happened = np.array([q.happened for q in questions])
    known = np.array(content)
    timings = {"timing alone, logit": np.array(logit), "timing alone, delays": np.array(delay)}
    timed = max(timings.values(), key=lambda said: auc(happened, said))
    groups = [q.session.name for q in questions]

    def row(method: str, metric: str, value: float, unit: str = "") -> dict[str, Any]:
        return {"case": case, "method": method, "metric": metric, "value": value, "unit": unit}

    found = [
        *(row(method, "AUC", auc(happened, said)) for method, said in timings.items()),
        row("content", "AUC", auc(happened, known)),
        row("content", "AUC gain", auc(happened, known) - auc(happened, timed)),
        row("content", "Brier skill", brier_skill(happened, known)),
        row("content", "mean said", float(known.mean())),
        row("content", "mean happened", float(happened.mean())),
    ]
    scores = {
        "AUC": lambda r: auc(happened[r], known[r]),
        "AUC gain": lambda r: auc(happened[r], known[r]) - auc(happened[r], timed[r]),
        "Brier skill": lambda r: brier_skill(happened[r], known[r]),
    }
    for metric, score in scores.items():
        low, high = interval(groups, score, rounds)
        found += [
            row("content", f"{metric}, 2.5 %", low),
            row("content", f"{metric}, 97.5 %", high),
        ]
    positive = [q for q in questions if q.happened]
    return [
        *found,
        row("all", "moments", len(questions), "count"),
        row("all", "positives", len(positive), "count"),
        row("all", "sessions", len(set(groups)), "count"),
        row("all", "sessions with positives", len({q.session.name for q in positive}), "count"),
        row("all", "owners", len({q.session.owner for q in questions}), "count"),
        row("all", "owners with positives", len({q.session.owner for q in positive}), "count"),
    ]


def _timing_alone(questions: list[Asked]) -> dict[str, float]:
    choices = [((q.timing(), {}), int(not q.happened)) for q in questions]
    return fit_choices(choices, TIMING, RIDGE, {})
