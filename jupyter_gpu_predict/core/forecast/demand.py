"""What each cell of a document needs of a GPU: from its runs, or else from its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..model import CellRun, Quantiles
from ..trace.cells import CellHistory, cell_history
from ..trace.document import Document, DocumentCell
from ..trace.records import touches_gpu
from ..trace.source import GpuUse

PRIOR_RUNS = 2.0
"""Runs that the source's word weighs as much as, on whether a cell uses the GPU."""

USES_GPU: Mapping[GpuUse, float] = {
    GpuUse.NONE: 0.02,
    GpuUse.LIBRARY: 0.1,
    GpuUse.READS: 0.6,
    GpuUse.MOVES: 0.95,
    GpuUse.TRAINS: 0.95,
}
"""Chance that a cell which never ran uses the GPU: assumptions, to be trained on a site's traces.
No public trace has both sources and GPU use."""

UNKNOWN_PEAK = Quantiles(0.5e9, 2.3e9, 18e9)
"""Peak of a GPU cell that nothing is known of, in bytes: .5 and .9 of a research cluster's
notebooks (NotebookOS, ASPLOS'26); the low one is a CUDA context, which any use costs."""

UNKNOWN_GPU_RUN = Quantiles(0.5, 6.5, 445.0)
UNKNOWN_RUN = Quantiles(0.0, 0.54, 12.0)
"""Seconds that cells take whose source does, or does not, speak of a GPU: .5 and .9 of public
notebooks; the low ones are assumptions."""


@dataclass(frozen=True, slots=True)
class CellDemand:
    """What one cell needs when it runs.

    `gpu` is the chance that it uses the GPU, `peak_bytes` the most memory if it does, `run_s` how
    long it takes. `basis` is ``"cell"`` (its own runs), ``"alike"`` (runs of cells that differ in
    constants only) or ``"source"``.
    """

    gpu: float
    peak_bytes: Quantiles = UNKNOWN_PEAK
    run_s: Quantiles = UNKNOWN_RUN
    basis: str = "source"


def cell_demands(
    document: Document, runs: Iterable[CellRun], normalised: Mapping[str, str]
) -> tuple[CellDemand, ...]:
    """Return the demand of each cell of a document, in order.

    Parameters
    ----------
    document
        The notebook as it is now.
    runs
        All that is known of these cells, by any kernel.
    normalised
        The normalised digest of each digest in `runs`, as far as it is known.

    Raises
    ------
    BadInputError
        If a number in a run is negative, infinite or not a number.
    """
    known = list(runs)
    alike = [
        replace(run, digest=normalised[run.digest]) for run in known if run.digest in normalised
    ]
    own, others = _Histories(known), _Histories(alike)
    return tuple(_demand(cell, own, others) for cell in document.cells)


class _Histories:
    """Of all runs, and of those that used the GPU."""

    def __init__(self, runs: list[CellRun]) -> None:
        self.all: CellHistory = cell_history(runs)
        self.gpu: CellHistory = cell_history(run for run in runs if touches_gpu(run))


def _demand(cell: DocumentCell, own: _Histories, alike: _Histories) -> CellDemand:
    prior = USES_GPU[cell.reading.gpu]
    tries = (("cell", cell.digest, own), ("alike", cell.normalised, alike))
    for basis, digest, histories in tries:
        if (found := histories.all.by_digest.get(digest)) is not None:
            total = PRIOR_RUNS + found.runs
            return CellDemand(
                gpu=(PRIOR_RUNS * prior + found.runs * found.gpu_share) / total,
                peak_bytes=histories.gpu.expected_peak_bytes(digest) or UNKNOWN_PEAK,
                run_s=found.duration_s,
                basis=basis,
            )
    likely = prior >= 0.5
    return CellDemand(gpu=prior, run_s=UNKNOWN_GPU_RUN if likely else UNKNOWN_RUN)
