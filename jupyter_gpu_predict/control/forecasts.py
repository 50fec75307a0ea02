"""When each kernel's forecast is made, and from which history."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..core.forecast.prior import choose_prior
from ..core.forecast.serving import choose_need, kind_of
from ..core.model import CellRun, Forecast, Quantiles
from ..core.trace.records import touches_gpu
from ..errors import GpuPredictError
from .ports import Forecasting
from .records import KernelRecord
from .situations import Situations

if TYPE_CHECKING:
    from .loop import ControlLoop

log = logging.getLogger(__name__)

TOLD_LATE_S = 2.0
"""How late a kernel may tell of a cell that has ended."""


class ForecastRounds:
    """Keeps one forecast per kernel under way at most, and never waits for any."""

    def __init__(self, loop: ControlLoop, forecasting: Forecasting, interval_s: float) -> None:
        self._loop = loop
        self._forecasting = forecasting
        self._interval_s = interval_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._situations = Situations(loop)

    def forget(self, kernel_id: str) -> None:
        """Drop what is under way or kept for a kernel that is gone."""
        if (task := self._tasks.pop(kernel_id, None)) is not None:
            task.cancel()
        self._forecasting.forget(kernel_id)
        self._situations.forget(kernel_id)

    async def close(self) -> None:
        """Cancel what is under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def refresh(self) -> None:
        """Start the forecasts that are due, in the background."""
        now = self._loop.clock()
        for record in self._loop.kernels.values():
            if now < record.next_forecast_s or record.kernel_id in self._tasks:
                continue
            record.next_forecast_s = now + self._interval_s
            task = asyncio.ensure_future(self._forecast(record, now))
            self._tasks[record.kernel_id] = task
            task.add_done_callback(partial(self._forecast_ended, record.kernel_id))

    def _forecast_ended(self, kernel_id: str, _: asyncio.Task[None]) -> None:
        self._tasks.pop(kernel_id, None)

    async def _forecast(self, record: KernelRecord, now: float) -> None:
        runs = list(record.runs)
        prior: Sequence[CellRun] = ()
        basis = "kernel"
        last = record.forecast
        if last is None or last.basis != "kernel" or last.backtest is None:
            prior, basis = await asyncio.to_thread(self._prior, record)
        seen = await self._situations.of(record, now)
        try:
            forecast = await self._forecasting.refresh(
                record.kernel_id, list(record.samples), runs, prior, basis, now, seen.situation
            )
        except GpuPredictError as error:
            log.warning("No forecast for kernel %s: %s", record.kernel_id, error)
            return
        if record.kernel_id not in self._loop.kernels:
            return
        forecast = self._scored(record, seen.told(self._capped(forecast)))
        record.forecast = forecast
        self._loop.event(
            "forecast",
            kernel_id=record.kernel_id,
            notebook=record.notebook,
            model=forecast.model,
            basis=forecast.basis,
            pinball=forecast.backtest.pinball if forecast.backtest else None,
            coverage=forecast.backtest.coverage if forecast.backtest else None,
            candidates={c.model: round(c.pinball, 6) for c in forecast.candidates},
            need_model=forecast.need_model,
            need_brier={n.model: n.brier for n in forecast.needs},
            need_15s=forecast.need_probability(15),
            memory_high_bytes=int(forecast.memory_bytes(60).high),
        )

    def _scored(self, record: KernelRecord, forecast: Forecast) -> Forecast:
        """Return the forecast with P(GPU needed) of the model that has done best for this kernel.

        Only what was said in idle moments is scored: of a cell that runs or waits all are sure.
        """
        running_s = record.running_since_s
        known_until_s = self._loop.clock() - TOLD_LATE_S if running_s is None else running_s
        uses_s = (run.start_s for run in record.runs if touches_gpu(run))
        # A cell that waits needs the GPU from then on, not from when it gets it.
        record.scores.happened(chain(uses_s, record.claimed_s), known_until_s)
        if not record.busy and not record.queued_cells:
            record.scores.said(
                forecast.made_s,
                record.last_used_s,
                [h.horizon_s for h in forecast.horizons],
                {kind_of(need.model): need.probabilities for need in forecast.needs},
            )
        return choose_need(forecast, record.scores.scores())

    def _capped(self, forecast: Forecast) -> Forecast:
        """Return the forecast with no more memory than the largest GPU has: it cannot be had."""
        largest = float(max((s.total_bytes for s in self._loop.statuses), default=0))
        return replace(
            forecast,
            horizons=tuple(
                replace(
                    h,
                    memory_bytes=Quantiles(
                        min(h.memory_bytes.low, largest),
                        min(h.memory_bytes.mid, largest),
                        min(h.memory_bytes.high, largest),
                    ),
                )
                for h in forecast.horizons
            ),
        )

    def _prior(self, record: KernelRecord) -> tuple[Sequence[CellRun], str]:
        """Return what is known of the same notebook, or of the same cells, from earlier kernels."""
        notebook_runs = self._earlier(record, notebook=record.notebook) if record.notebook else []
        digests = [] if notebook_runs else list({r.digest for r in record.runs})
        return choose_prior(
            notebook_runs, self._earlier(record, digests=digests) if digests else []
        )

    def _earlier(self, record: KernelRecord, **which: Any) -> list[CellRun]:
        runs = self._loop.store.cell_runs(**which)
        return [r for r in runs if r.kernel_id != record.kernel_id]
