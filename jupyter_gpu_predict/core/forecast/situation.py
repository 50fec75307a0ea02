"""A kernel's situation, from its cell runs and its notebook as they are known to a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from ..model import CellRun, Outcome
from ..trace.document import MAX_TRAIL, Document, Trail, find, follow
from ..trace.records import check_number, check_runs, end_of
from .content import Situation
from .delay import Moment
from .demand import cell_demands


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a kernel at `now_s`.

    `runs` are its own, `earlier` those of earlier sessions of the notebook, and `elsewhere` other
    runs of the same cells; `normalised` gives the normalised digest of a digest in any of them.
    `queued` are cells of requests sent and not begun, as id and digest. `running_since_s` is when
    the cell that runs began, `running_digest` its digest.
    """

    now_s: float
    runs: Sequence[CellRun] = ()
    earlier: Sequence[CellRun] = ()
    elsewhere: Sequence[CellRun] = ()
    normalised: Mapping[str, str] = field(default_factory=dict)
    queued: Sequence[tuple[str | None, str]] = ()
    running_since_s: float | None = None
    running_digest: str | None = None
    held_bytes: float = 0.0


def situation_of(document: Document, known: Known) -> Situation:
    """Return the situation of a kernel.

    A queued cell that is not in the document counts as run by nobody; a clock that was set back
    as no time at all.

    Raises
    ------
    BadInputError
        If a number is negative, infinite or not a number.
    """
    check_number(known.now_s, "now_s", "content forecast")
    runs = [run for run in check_runs(known.runs) if run.outcome is not Outcome.REFUSED]
    demands = cell_demands(document, [*runs, *known.earlier, *known.elsewhere], known.normalised)
    busy_s = age_s = 0.0
    running = None
    trail = follow(document, runs, known.earlier)
    if known.running_since_s is not None:
        running = find(document, [(None, known.running_digest or "")])[0]
        if running is not None:
            left_s = demands[running].run_s.mid - (known.now_s - known.running_since_s)
            busy_s = max(0.0, left_s)
            trail = replace(trail, positions=(*trail.positions, running))
    elif runs:
        age_s = max(0.0, known.now_s - max(map(end_of, runs)))
    return Situation(
        trail=trail,
        demands=demands,
        moment=moment_of(runs, trail),
        age_s=age_s,
        running=running,
        busy_s=busy_s,
        queued=tuple(p for p in find(document, known.queued) if p is not None),
        held_bytes=known.held_bytes,
    )


def moment_of(runs: Sequence[CellRun], trail: Trail) -> Moment:
    """Return what a delay is told from after these runs, oldest first, on this trail."""
    gaps = [max(0.0, after.start_s - end_of(before)) for before, after in pairwise(runs)]
    places = trail.positions
    return Moment(
        gaps_s=tuple(gaps[-10:]),
        last_run_s=end_of(runs[-1]) - runs[-1].start_s if runs else 0.0,
        moved=places[-1] - places[-2] if len(places) > 1 else None,
    )


def moves_of(
    document: Document, runs: Sequence[CellRun], earlier: Sequence[CellRun] = ()
) -> Iterable[tuple[Trail, int, Moment, float]]:
    """Yield what the models learn from: each move of a session, and what was known before it.

    That is the trail, the position that came next, the moment and the delay in seconds. What was
    edited when is not in the runs: of the document as it is now, nothing counts as edited.

    Raises
    ------
    BadInputError
        If a number in a run is negative, infinite or not a number.
    """
    done = [run for run in check_runs(runs) if run.outcome is not Outcome.REFUSED]
    places = find(document, [(run.cell_id, run.digest) for run in done])
    moves = follow(document, (), earlier).earlier
    for i in range(1, len(done)):
        if (after := places[i]) is None:
            continue
        trail = Trail(
            size=len(document),
            positions=tuple(p for p in places[max(0, i - MAX_TRAIL) : i] if p is not None),
            earlier=moves,
            failed=done[i - 1].outcome is Outcome.ERROR,
        )
        gap_s = max(0.0, done[i].start_s - end_of(done[i - 1]))
        yield trail, after, moment_of(done[max(0, i - MAX_TRAIL) : i], trail), gap_s
