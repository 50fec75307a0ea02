"""What earlier runs of a cell say about its next one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..model import CellRun, Outcome, Quantiles
from .quantile import quantiles
from .records import check_runs, end_of, touches_gpu


@dataclass(frozen=True, slots=True)
class CellStatistics:
    """Statistics of the runs of one cell source.

    `gpu_share` is the share of its runs that touched the GPU, `last_s` the end of the latest one.
    """

    digest: str
    runs: int
    peak_bytes: Quantiles
    duration_s: Quantiles
    gpu_share: float
    last_s: float


@dataclass(frozen=True, slots=True)
class CellHistory:
    """Statistics of every cell source seen, by digest."""

    by_digest: Mapping[str, CellStatistics]

    def expected_duration_s(self, digest: str) -> float | None:
        """Return the median duration of a cell in seconds, ``None`` if it never ran."""
        known = self.by_digest.get(digest)
        return known.duration_s.mid if known else None

    def expected_peak_bytes(self, digest: str) -> Quantiles | None:
        """Return the quantiles of a cell's peak device memory, ``None`` if it never ran."""
        known = self.by_digest.get(digest)
        return known.peak_bytes if known else None


def cell_history(runs: Iterable[CellRun]) -> CellHistory:
    """Return the statistics of cell runs by digest of their source.

    Runs that were refused never ran and are left out. Runs that failed or were interrupted ended
    early and count only for a cell that never ended well.

    Raises
    ------
    BadInputError
        If a number in a run is negative, infinite or not a number.
    """
    grouped: dict[str, list[CellRun]] = {}
    for run in check_runs(runs):
        if run.outcome is not Outcome.REFUSED:
            grouped.setdefault(run.digest, []).append(run)
    found = {}
    for digest, group in grouped.items():
        whole = [run for run in group if run.outcome is Outcome.OK] or group
        found[digest] = CellStatistics(
            digest=digest,
            runs=len(group),
            peak_bytes=quantiles(float(run.peak_bytes) for run in whole),
            duration_s=quantiles(end_of(run) - run.start_s for run in whole),
            gpu_share=sum(touches_gpu(run) for run in group) / len(group),
            last_s=max(end_of(run) for run in group),
        )
    return CellHistory(found)


def idle_gaps(runs: Iterable[CellRun]) -> tuple[float, ...]:
    """Return the seconds between the runs of one kernel in which no cell ran, oldest first.

    Raises
    ------
    BadInputError
        If a number in a run is negative, infinite or not a number.
    """
    gaps: list[float] = []
    busy_until: float | None = None
    for run in check_runs(runs):
        if busy_until is not None and run.start_s > busy_until:
            gaps.append(run.start_s - busy_until)
        busy_until = end_of(run) if busy_until is None else max(busy_until, end_of(run))
    return tuple(gaps)
