"""Training of the content model: which cell users go to next, and when, learned on this site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

from ..control.model_file import shipped_content
from ..core.forecast import delay, next_cell
from ..core.forecast.content import NAME, ContentModel
from ..core.forecast.delay import EDGES_S, Moment
from ..core.forecast.situation import moves_of
from ..core.model import CellRun
from ..core.trace.document import Document, Trail
from ..errors import BadInputError
from .pipeline import MAX_RUNS, MIN_OWNERS, Progress, Traces, Trained, held_out, kept
from .registry import ModelRegistry, ModelVersion

MIN_MOVES = 200
"""Moves below which nothing is trained: fewer than ten for each weight."""

MAX_MOVES = 2000
"""Of one notebook, the latest moves that count: one that runs all day must not outweigh others."""

LEAST = 1e-6
"""Probability of what a model holds to be impossible."""

Move = tuple[Trail, int, Moment, float]
Moves = Mapping[str, Sequence[Move]]
Read = Callable[[str], Document | None]


def collect_moves(traces: Traces, read: Read) -> dict[str, list[Move]]:
    """Return the moves of each notebook that can still be read, by its path.

    Parameters
    ----------
    traces
        Where the cell runs are.
    read
        Returns the document at a notebook's path, ``None`` if there is none any more.
    """
    by_notebook: dict[str, dict[str, list[CellRun]]] = {}
    for run in traces.cell_runs(limit=MAX_RUNS):
        if run.notebook is not None:
            kernels = by_notebook.setdefault(run.notebook, {})
            kernels.setdefault(run.kernel_id, []).append(run)
    found = {}
    for notebook, kernels in sorted(by_notebook.items()):
        if (document := read(notebook)) is None or not len(document):
            continue
        moves: list[Move] = []
        earlier: list[CellRun] = []
        for runs in kernels.values():
            moves += moves_of(document, runs[-MAX_MOVES:], earlier)
            earlier += runs
        if moves:
            found[notebook] = moves[-MAX_MOVES:]
    return found


def train_content(
    traces: Traces,
    read: Read,
    registry: ModelRegistry,
    *,
    now_s: float,
    seed: int = 1,
    promote: bool = True,
    progress: Progress = lambda *_: None,
) -> Trained:
    """Train the content model on all notebooks of a trace store that can still be read.

    It is scored on notebooks held out, where it serves only if it beats the weights that are
    shipped in each score; the version kept is then trained on all of them.

    Parameters
    ----------
    traces, read
        Where from, see :func:`collect_moves`.
    registry
        Where to.
    now_s
        When, in seconds since the epoch.
    seed
        Of the choice of who is held out.
    promote
        Whether it may serve.
    progress
        Called with what is done now and the share that is behind, 0 to 1.

    Raises
    ------
    BadInputError
        If there is too little to learn from.
    """
    progress("read the notebooks", 0.0)
    moves = collect_moves(traces, read)
    count = sum(map(len, moves.values()))
    if len(moves) < MIN_OWNERS or count < MIN_MOVES:
        raise BadInputError(
            f"training: {count} moves in {len(moves)} notebooks that can be read, {MIN_MOVES} in "
            f"{MIN_OWNERS} are needed; give the server's root folder by --notebooks"
        )
    held = held_out(sorted(moves), seed)
    progress("train without the held-out notebooks", 0.3)
    trial = fit_content({owner: m for owner, m in moves.items() if owner not in held})
    progress("score on the held-out notebooks", 0.5)
    tested = {owner: moves[owner] for owner in held}
    scores, baseline = content_scores(trial, tested), content_scores(shipped_content(), tested)
    progress("train on all", 0.7)
    about = ModelVersion(
        NAME,
        version=0,
        made_s=now_s,
        seed=seed,
        data_hash=blake2b(repr(moves).encode(), digest_size=16).hexdigest(),
        examples=count,
        owners=len(moves),
        scores=scores,
        baseline=baseline,
    )
    done = kept(
        registry,
        fit_content(moves).to_record(),
        about,
        why_not_serve(scores, baseline),
        promote=promote,
        good="better than the shipped one on notebooks not seen",
    )
    progress("done", 1.0)
    return done


def fit_content(moves: Moves) -> ContentModel:
    """Return the model of these moves."""
    every = [move for one in moves.values() for move in one]
    return ContentModel(
        next_cell.fit((trail, chosen) for trail, chosen, _, _ in every),
        delay.fit((moment, gap_s) for _, _, moment, gap_s in every),
    )


def content_scores(model: ContentModel, moves: Moves) -> dict[str, float]:
    """Return a model's scores: each the mean over notebooks of its mean over their moves.

    ``top1`` is how often the likeliest cell was next, ``log_loss`` that of the cell which was, and
    ``delay_log_loss`` that of the piece of time in which it began; in nats.
    """
    sums = {"top1": 0.0, "log_loss": 0.0, "delay_log_loss": 0.0}
    for one in moves.values():
        for trail, chosen, moment, gap_s in one:
            cells = model.cells.forecast(trail)
            chance = next((c.probability for c in cells if c.position == chosen), 0.0)
            sums["top1"] += (bool(cells) and cells[0].position == chosen) / len(one)
            sums["log_loss"] -= math.log(max(LEAST, chance)) / len(one)
            sums["delay_log_loss"] -= _log_likelihood(model, moment, gap_s) / len(one)
    return {name: total / len(moves) for name, total in sums.items()}


def why_not_serve(scores: Mapping[str, float], baseline: Mapping[str, float]) -> str | None:
    """Return why a model should not serve in place of the shipped one, ``None`` if it may."""
    for metric, sign in (("top1", -1), ("log_loss", 1), ("delay_log_loss", 1)):
        if sign * scores[metric] > sign * baseline[metric]:
            return (
                f"its {metric} on notebooks it has not seen is {scores[metric]:.4f}, the shipped "
                f"one's {baseline[metric]:.4f}"
            )
    return None


def _log_likelihood(model: ContentModel, moment: Moment, gap_s: float) -> float:
    found = model.delays.forecast(moment)
    begin = max(edge for edge in EDGES_S if edge <= gap_s)
    end = next((edge for edge in EDGES_S if edge > begin), math.inf)
    share = found.survival(begin) - (0.0 if math.isinf(end) else found.survival(end))
    return math.log(max(LEAST, share))
