"""Whose P(GPU needed) serves a kernel, as the loop keeps account of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from loop_stage import Stage

from jupyter_gpu_predict.control.forecasts import ForecastRounds
from jupyter_gpu_predict.control.ports import SavedNotebook
from jupyter_gpu_predict.core.forecast.content import Situation
from jupyter_gpu_predict.core.forecast.live import MIN_OUTCOMES
from jupyter_gpu_predict.core.model import (
    HORIZONS_S,
    CellRun,
    Claim,
    Forecast,
    HorizonForecast,
    NeedForecast,
    NextCell,
    Outcome,
    Quantiles,
)
from jupyter_gpu_predict.core.trace.digest import source_digest
from jupyter_gpu_predict.core.trace.document import read_document
from jupyter_gpu_predict.errors import GpuPredictError

SOURCES = ("import torch", "model.to(device)", "print(model)")
NOTHING = Quantiles(0.0, 0.0, 0.0)


class Two:
    """Forecasts of two models that always say the same; `seen` is what they were made from."""

    def __init__(self, content: float, timing: float) -> None:
        self.chances = {"persistence": timing, "content": content}
        self.seen: list[Situation | None] = []

    async def refresh(self, kernel_id: str, *given: Any) -> Forecast:
        now_s, situation = given[-2:]
        self.seen.append(situation)
        needs = [NeedForecast(m, (p,) * len(HORIZONS_S)) for m, p in self.chances.items()]
        horizons = [HorizonForecast(h, NOTHING, needs[-1].probabilities[0]) for h in HORIZONS_S]
        return Forecast(
            kernel_id, now_s, "persistence", "kernel", tuple(horizons), None, (),
            need_model="content", needs=tuple(needs if situation else needs[:1]),
            next_cells=(NextCell(1, 0.9),) if situation else (),
        )  # fmt: skip

    def forget(self, kernel_id: str) -> None:
        pass


class Saved:
    """One notebook for all kernels, or none."""

    def __init__(self, *sources: str) -> None:
        cells = [(f"c{i}", source) for i, source in enumerate(sources)]
        self.notebook = SavedNotebook(read_document(cells), sources)

    async def saved(self, *_: Any, **__: Any) -> SavedNotebook:
        return self.notebook

    def forget(self, kernel_id: str) -> None:
        pass


def ran(place: int, start_s: float, peak_bytes: int) -> CellRun:
    digest = source_digest(SOURCES[place])
    return CellRun(
        "a", "a.ipynb", f"c{place}", digest, start_s, start_s + 1, peak_bytes, 0, "torch", 0, 1.0,
        Outcome.OK,
    )  # fmt: skip


async def forecast(rounds: ForecastRounds, stage: Stage) -> Forecast:
    """Let the rounds make a forecast of the kernel and return the one that stands."""
    record = stage.loop.kernels["a"]
    record.next_forecast_s = 0.0
    rounds.refresh()
    await asyncio.wait(rounds._tasks.values(), timeout=30)
    assert not rounds._tasks, "the forecast does not end"
    assert record.forecast is not None
    return record.forecast


def test_who_was_right_serves(play: Callable[..., None]) -> None:
    """Timing said that no GPU is needed, content that it is; and it was, each time."""

    async def story(stage: Stage) -> None:
        port = await stage.kernel("a")
        assert port.record is not None
        stage.loop.notebooks = Saved(*SOURCES)
        rounds = ForecastRounds(stage.loop, models := Two(content=0.1, timing=0.9), 10.0)
        for round_ in range(MIN_OUTCOMES):
            found = await forecast(rounds, stage)
            assert found.need_model == "content"
            assert any(f"{round_} of {MIN_OUTCOMES} outcomes" in note for note in found.notes)
            stage.now += 2
            stage.loop.cell_ran(port.record, ran(1, stage.now - 1, 10**9))
        found = await forecast(rounds, stage)
        assert found.need_model == "persistence"
        assert {h.need_probability for h in found.horizons} == {0.9}
        assert [n.outcomes for n in found.needs] == [MIN_OUTCOMES] * 2
        timing, content = (n.brier or 0.0 for n in found.needs)
        assert timing < 0.1 < 0.7 < content
        assert found.next_cells == (NextCell(1, 0.9, "c1", SOURCES[1]),)
        assert stage.kinds().count("forecast") == MIN_OUTCOMES + 1
        last = models.seen[-1]
        assert last is not None
        assert last.trail.positions == (1,) * MIN_OUTCOMES
        await rounds.close()

    play(story)


def test_a_cell_that_waits_for_its_gpu_needed_it_from_its_claim_on(
    play: Callable[..., None],
) -> None:
    """Content said so; the cell came soon, and began only long after every horizon."""

    async def story(stage: Stage) -> None:
        port = await stage.kernel("a")
        assert port.record is not None
        stage.loop.notebooks = Saved(*SOURCES)
        rounds = ForecastRounds(stage.loop, Two(content=1.0, timing=0.0), 10.0)
        await forecast(rounds, stage)
        stage.now += 2
        stage.loop.claim(Claim("c", "a", 100, stage.now, stage.now + 900))
        stage.now += 600
        scored = {n.model: n.brier for n in (await forecast(rounds, stage)).needs}
        assert scored == {"content": 0.0, "persistence": 1.0}
        await rounds.close()

    play(story)


def test_a_kernel_gone_while_its_history_is_read_leaves_none_behind(
    play: Callable[..., None],
) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("a")
        assert port.record is not None
        stage.loop.notebooks = Saved(*SOURCES)
        rounds = ForecastRounds(stage.loop, Two(0.5, 0.5), 10.0)
        situations = rounds._situations
        begun, gone, done = (threading.Event() for _ in range(3))
        whole = situations._read

        def slow(*given: Any) -> Any:
            begun.set()
            gone.wait(30)
            try:
                return whole(*given)
            finally:
                done.set()

        situations._read = slow  # type: ignore[method-assign]
        task = asyncio.ensure_future(situations.of(port.record, stage.now))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        situations.forget("a")
        gone.set()
        await asyncio.to_thread(done.wait, 30)
        await asyncio.wait({task})
        assert not situations._histories
        await rounds.close()

    play(story)


def test_what_runs_and_waits_is_seen_and_scores_nobody(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("a", used=100)
        record = port.record
        assert record is not None
        stage.loop.notebooks = Saved(*SOURCES)
        rounds = ForecastRounds(stage.loop, models := Two(0.5, 0.5), 10.0)
        one, two, other = (source_digest(s) for s in (*SOURCES[:2], "gone"))
        record.queued_cells = (("c0", one), ("c1", two), (None, other))
        await forecast(rounds, stage)
        stage.loop.cell_started(record, one)
        await forecast(rounds, stage)
        waiting, running = models.seen
        assert waiting is not None
        assert running is not None
        assert (waiting.running, waiting.queued) == (None, (0, 1))
        assert (running.running, running.queued) == (0, (1,))
        assert running.held_bytes == 100
        stage.now += 10_000
        assert {n.outcomes for n in (await forecast(rounds, stage)).needs} == {0}
        await rounds.close()

    play(story)


def test_without_the_notebook_timing_serves_and_says_why(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        port = await stage.kernel("a")
        assert port.record is not None
        notebooks = Saved()
        empty = replace(notebooks.notebook.document, notes=("it is not there",))
        notebooks.notebook = replace(notebooks.notebook, document=empty)
        rounds = ForecastRounds(stage.loop, models := Two(0.1, 0.9), 10.0)
        assert (await forecast(rounds, stage)).notes == ()
        stage.loop.notebooks = notebooks
        found = await forecast(rounds, stage)
        assert found.notes == ("notebook: it is not there",)
        assert found.next_cells == ()
        assert models.seen == [None, None]
        # A run that makes no sense costs the content, and not the forecast.
        stage.loop.notebooks = Saved(*SOURCES)
        port.record.runs.append(replace(ran(0, stage.now, 0), end_s=float("nan")))
        found = await forecast(rounds, stage)
        assert any("end_s" in note for note in found.notes)
        await rounds.close()

    play(story)


def test_runs_of_other_kernels_are_read_once_for_a_document(
    play: Callable[..., None], monkeypatch: Any
) -> None:
    async def story(stage: Stage) -> None:
        await stage.kernel("a")
        stage.store.add_cell_run(
            replace(ran(1, 10.0, 5 * 10**9), kernel_id="b", notebook="b.ipynb")
        )
        stage.store.add_cell_run(replace(ran(0, 20.0, 0), kernel_id="c"))
        stage.store.add_cell_run(replace(ran(2, 30.0, 0), kernel_id="c"))
        stage.loop.notebooks = Saved(*SOURCES)
        rounds = ForecastRounds(stage.loop, models := Two(0.5, 0.5), 10.0)
        asked = []
        cell_runs = stage.store.cell_runs
        monkeypatch.setattr(
            stage.store, "cell_runs", lambda **which: asked.append(which) or cell_runs(**which)
        )
        await forecast(rounds, stage)
        first = models.seen[0]
        assert first is not None
        assert first.trail.earlier == ((0, 2),)
        assert first.demands[1].peak_bytes.mid == 5 * 10**9
        before = len(asked)
        await forecast(rounds, stage)
        # What the series' own prior asks for stays; the document's cells are not asked for again.
        assert all("digests" not in which for which in asked[before:])
        await rounds.close()

    play(story)


def test_a_worker_that_fails_leaves_the_last_forecast(play: Callable[..., None]) -> None:
    async def story(stage: Stage) -> None:
        await stage.kernel("a")
        rounds = ForecastRounds(stage.loop, models := Two(0.5, 0.5), 10.0)
        kept = await forecast(rounds, stage)

        async def fails(*_: Any) -> Forecast:
            raise GpuPredictError("the worker is gone")

        models.refresh = fails  # type: ignore[method-assign]
        assert await forecast(rounds, stage) is kept
        await rounds.close()

    play(story)
