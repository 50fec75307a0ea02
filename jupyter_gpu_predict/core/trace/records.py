"""What a trace record must satisfy before anything is derived from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

from ...errors import BadInputError
from ..model import CellRun, DemandSample


def check_number(value: Any, name: str, owner: str) -> float:
    """Return `value` as a float if it is a finite number that is not negative.

    Raises
    ------
    BadInputError
        If it is anything else; the message names `owner` and `name`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadInputError(f"{owner}: {name} is {value!r}, not a number; drop this record")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise BadInputError(
            f"{owner}: {name} is {number!r}; it must be finite and not negative; drop this record"
        )
    return number


def check_samples(samples: Iterable[DemandSample]) -> list[DemandSample]:
    """Return the samples ordered by time.

    Raises
    ------
    BadInputError
        If a time or a size is negative, infinite or not a number.
    """
    checked = list(samples)
    for sample in checked:
        owner = f"demand sample of kernel {sample.kernel_id}"
        check_number(sample.t_s, "t_s", owner)
        check_number(sample.used_bytes, "used_bytes", owner)
        check_number(sample.suspended_bytes, "suspended_bytes", owner)
    return sorted(checked, key=lambda sample: sample.t_s)


def check_runs(runs: Iterable[CellRun]) -> list[CellRun]:
    """Return the cell runs ordered by start.

    A run that ends before it starts is kept: that is a clock that was set back while the cell ran
    (see :func:`end_of`).

    Raises
    ------
    BadInputError
        If a time or a size is negative, infinite or not a number.
    """
    checked = list(runs)
    for run in checked:
        owner = f"cell run {run.digest} of kernel {run.kernel_id}"
        check_number(run.start_s, "start_s", owner)
        check_number(run.end_s, "end_s", owner)
        check_number(run.peak_bytes, "peak_bytes", owner)
        check_number(run.end_bytes, "end_bytes", owner)
        check_number(run.busy_s, "busy_s", owner)
    return sorted(checked, key=lambda run: run.start_s)


def end_of(run: CellRun) -> float:
    """Return the end of a run; never before its start, even if the clock was set back."""
    return max(run.start_s, run.end_s)


def touches_gpu(run: CellRun) -> bool:
    """Tell whether a run held device memory."""
    return run.peak_bytes > 0
