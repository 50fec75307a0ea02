"""Situations as JSON objects and back: the short form in which they travel between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from ...errors import BadInputError
from ..model import Quantiles
from ..trace.document import Trail
from .content import Situation
from .delay import Moment
from .demand import CellDemand

MAX_QUEUED = 100
"""Queued cells that travel: more of them change nothing within the longest horizon worth the name.
"""


def situation_to_record(situation: Situation) -> dict[str, Any]:
    """Return a situation as plain JSON types.

    Most cells of a long document need the same, so that each demand is written once.
    """
    trail, moment = situation.trail, situation.moment
    kinds = {demand: i for i, demand in enumerate(dict.fromkeys(situation.demands))}
    return {
        "size": trail.size,
        "positions": list(trail.positions),
        "earlier": [list(move) for move in trail.earlier],
        "edited": sorted(trail.edited),
        "failed": trail.failed,
        "unplaced": trail.unplaced,
        "kinds": [[d.gpu, astuple(d.peak_bytes), astuple(d.run_s), d.basis] for d in kinds],
        "demands": [kinds[demand] for demand in situation.demands],
        "gaps_s": list(moment.gaps_s),
        "last_run_s": moment.last_run_s,
        "moved": moment.moved,
        "age_s": situation.age_s,
        "running": situation.running,
        "busy_s": situation.busy_s,
        "queued": list(situation.queued[:MAX_QUEUED]),
        "held_bytes": situation.held_bytes,
    }


def situation_from_record(record: Mapping[str, Any]) -> Situation:
    """Return the situation that :func:`situation_to_record` made `record` of.

    Raises
    ------
    BadInputError
        If a field is missing or of the wrong form.
    """
    try:
        kinds = [
            CellDemand(gpu, Quantiles(*peak), Quantiles(*run), basis)
            for gpu, peak, run, basis in record["kinds"]
        ]
        return Situation(
            trail=Trail(
                size=record["size"],
                positions=tuple(record["positions"]),
                earlier=tuple((before, after) for before, after in record["earlier"]),
                edited=frozenset(record["edited"]),
                failed=record["failed"],
                unplaced=record["unplaced"],
            ),
            demands=[kinds[i] for i in record["demands"]],
            moment=Moment(tuple(record["gaps_s"]), record["last_run_s"], record["moved"]),
            age_s=record["age_s"],
            running=record["running"],
            busy_s=record["busy_s"],
            queued=tuple(record["queued"]),
            held_bytes=record["held_bytes"],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise BadInputError(f"situation record: malformed field ({error!r}); drop it") from error
