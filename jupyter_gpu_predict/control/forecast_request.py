"""A request to the forecast worker, put together without holding up the event loop."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.forecast.content import Situation
from ..core.forecast.situation_record import situation_to_record
from ..core.model import STEP_S, CellRun, DemandSample
from ..core.trace.records import check_runs, check_samples, end_of
from ..core.trace.rows import run_to_row, sample_to_row
from ..core.trace.series import MAX_STEPS
from ..errors import BadInputError

SPAN_S = MAX_STEPS * STEP_S
"""Records older than the steps a forecast looks at are not sent."""

MAX_PRIOR_RUNS = 500

CHUNK = 200
"""Records handled between two turns of the event loop, about half a millisecond's work."""


@dataclass(frozen=True, slots=True)
class Request:
    """Checked records of one kernel, ready to be encoded."""

    head: Mapping[str, Any]
    samples: Sequence[DemandSample]
    runs: Sequence[CellRun]
    prior_runs: Sequence[CellRun]

    async def line(self, number: int) -> bytes:
        """Return the request with id `number` as a line of JSON."""
        parts = [
            json.dumps({"id": number, **self.head})[:-1],
            await _rows("samples", self.samples, sample_to_row),
            await _rows("runs", self.runs, run_to_row),
            await _rows("prior_runs", self.prior_runs, run_to_row),
        ]
        return ("".join(parts) + "}\n").encode()


async def prepare(  # noqa: PLR0917 - as the port has it
    kernel_id: str,
    samples: Sequence[DemandSample],
    runs: Sequence[CellRun],
    prior_runs: Sequence[CellRun],
    basis: str,
    now_s: float,
    horizons_s: Sequence[int],
    models: Mapping[str, str | None] | None = None,
    situation: Situation | None = None,
) -> Request:
    """Check the records and leave out what is too old to matter.

    `models` are the files of the learned models that may serve, by kind, as far as there are any.

    Raises
    ------
    BadInputError
        If a record or `now_s` is malformed.
    """
    if not math.isfinite(now_s):
        raise BadInputError(f"forecast of kernel {kernel_id}: now_s is {now_s!r}, not a time")
    told = None
    if situation is not None:
        # Off the event loop: a notebook of 20,000 cells takes 70 ms.
        told = await asyncio.to_thread(situation_to_record, situation)
    since_s = now_s - SPAN_S
    others = sorted(await _recent_runs(prior_runs, 0.0), key=end_of)
    return Request(
        {
            "kernel_id": kernel_id,
            "basis": basis,
            "now_s": now_s,
            "horizons_s": list(horizons_s),
            "models": dict(models or {}),
            "situation": told,
        },
        await _recent_samples(samples, since_s),
        await _recent_runs(runs, since_s),
        others[-MAX_PRIOR_RUNS:],
    )


async def _recent_samples(
    samples: Sequence[DemandSample], since_s: float
) -> Sequence[DemandSample]:
    """Return the samples since a time, and the latest one before it: its level goes on."""
    kept: list[DemandSample] = []
    before: DemandSample | None = None
    for at in range(0, len(samples), CHUNK):
        for sample in check_samples(samples[at : at + CHUNK]):
            if sample.t_s >= since_s:
                kept.append(sample)
            elif before is None or sample.t_s >= before.t_s:
                before = sample
        await asyncio.sleep(0)
    return kept if before is None else [before, *kept]


async def _recent_runs(runs: Sequence[CellRun], since_s: float) -> Sequence[CellRun]:
    """Return the runs that ended since a time, and the last one before it: what it left stays."""
    kept: list[CellRun] = []
    before: CellRun | None = None
    for at in range(0, len(runs), CHUNK):
        for run in check_runs(runs[at : at + CHUNK]):
            if end_of(run) >= since_s:
                kept.append(run)
            elif before is None or end_of(run) >= end_of(before):
                before = run
        await asyncio.sleep(0)
    return kept if before is None else [before, *kept]


async def _rows(name: str, records: Sequence[Any], row: Callable[[Any], list[Any]]) -> str:
    pieces = []
    for at in range(0, len(records), CHUNK):
        pieces.append(json.dumps([row(record) for record in records[at : at + CHUNK]])[1:-1])
        await asyncio.sleep(0)
    return f', "{name}": [{", ".join(pieces)}]'
