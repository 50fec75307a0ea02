"""Trace records as flat arrays: the short form in which they travel between processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import BadInputError
from ..model import CellRun, DemandSample, Outcome


def sample_to_row(sample: DemandSample) -> list[Any]:
    """Return a sample as ``[t_s, used_bytes, suspended_bytes, busy]``."""
    return [sample.t_s, sample.used_bytes, sample.suspended_bytes, int(sample.busy)]


def sample_from_row(kernel_id: str, row: Sequence[Any]) -> DemandSample:
    """Return the sample of a kernel that :func:`sample_to_row` made `row` of.

    Raises
    ------
    BadInputError
        If the row has not four fields.
    """
    if len(row) != 4:
        raise BadInputError(f"demand sample {row!r}: not four fields; drop this record")
    t_s, used_bytes, suspended_bytes, busy = row
    return DemandSample(kernel_id, t_s, used_bytes, suspended_bytes, bool(busy))


def run_to_row(run: CellRun) -> list[Any]:
    """Return what a forecast needs of a cell run, as an array."""
    return [
        run.kernel_id,
        run.digest,
        run.start_s,
        run.end_s,
        run.peak_bytes,
        run.end_bytes,
        run.peak_source,
        run.busy_s,
        run.outcome.value,
    ]


def run_from_row(row: Sequence[Any]) -> CellRun:
    """Return the cell run that :func:`run_to_row` made `row` of, without what it left out.

    Raises
    ------
    BadInputError
        If the row has not nine fields or the outcome is none.
    """
    try:
        kernel_id, digest, start_s, end_s, peak_bytes, end_bytes, source, busy_s, outcome = row
        ended = Outcome(outcome)
    except ValueError as error:
        raise BadInputError(f"cell run {row!r}: {error}; drop this record") from error
    return CellRun(
        kernel_id=kernel_id,
        notebook=None,
        cell_id=None,
        digest=digest,
        start_s=start_s,
        end_s=end_s,
        peak_bytes=peak_bytes,
        end_bytes=end_bytes,
        peak_source=source,
        host_peak_bytes=0,
        busy_s=busy_s,
        outcome=ended,
    )
