from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import pytest

from jupyter_gpu_predict.core.forecast.content import ContentModel, forecast_content
from jupyter_gpu_predict.core.forecast.delay import fit as fit_delays
from jupyter_gpu_predict.core.forecast.next_cell import fit as fit_cells
from jupyter_gpu_predict.core.forecast.situation import Known, moves_of, situation_of
from jupyter_gpu_predict.core.model import CellRun, Outcome
from jupyter_gpu_predict.core.trace.digest import source_digest
from jupyter_gpu_predict.core.trace.document import read_document
from jupyter_gpu_predict.errors import BadInputError

PATH = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
MODEL = ContentModel.from_record(json.loads(PATH.read_text()))
SOURCES = ["import torch", "model = Net()", "model.to(device)", "fit(model)", "print(score)"]
DOCUMENT = read_document((str(i), source) for i, source in enumerate(SOURCES))


def ran(place: int, at_s: float, seconds: float = 1.0, peak_bytes: int = 0) -> CellRun:
    digest = source_digest(SOURCES[place])
    return CellRun(
        "k", "a.ipynb", str(place), digest, at_s, at_s + seconds,
        peak_bytes, 0, "torch", 0, 0.0, Outcome.OK,
    )  # fmt: skip


def test_from_runs_and_sources_to_what_comes_next() -> None:
    runs = [ran(0, 100), ran(1, 103), ran(2, 106, 1.0, 10**9)]
    known = Known(110.0, runs, elsewhere=[ran(3, 0, 50.0, 4 * 10**9)] * 9, held_bytes=1e9)
    found = situation_of(DOCUMENT, known)
    assert found.trail.positions == (0, 1, 2)
    assert (found.age_s, found.busy_s) == (3.0, 0.0)
    assert (found.moment.gaps_s, found.moment.last_run_s, found.moment.moved) == ((2, 2), 1, 1)
    said = forecast_content(MODEL, found)
    assert said.next_cells[0].position == 3
    assert said.horizons[-1].need_probability > 0.5
    assert said.horizons[-1].memory_bytes.high == pytest.approx(4e9)
    assert said.burst_s is not None
    assert said.burst_s.mid == 50.0
    later = forecast_content(MODEL, situation_of(DOCUMENT, replace(known, now_s=4000.0)))
    assert later.horizons[2].need_probability < said.horizons[2].need_probability / 3


def test_a_run_all_behind_a_running_cell_is_waited_for() -> None:
    queued = [(str(i), source_digest(SOURCES[i])) for i in (2, 3)]
    running = source_digest(SOURCES[1])
    known = Known(
        110.0,
        [ran(0, 100)],
        elsewhere=[*[ran(1, 0, 20.0)] * 200, *[ran(2, 0, 1.0, 10**9)] * 200],
        queued=[("gone", "gone"), *queued],
        running_since_s=102.0,
        running_digest=running,
    )
    found = situation_of(DOCUMENT, known)
    assert (found.busy_s, found.age_s, found.queued) == (12.0, 0.0, (2, 3))
    assert found.trail.positions == (0, 1)
    needs = [h.need_probability for h in forecast_content(MODEL, found).horizons]
    assert needs[0] < 0.01
    assert needs[1] > 0.99


def test_a_clock_set_back_is_no_time_and_a_broken_one_is_refused() -> None:
    assert situation_of(DOCUMENT, Known(50.0, [ran(0, 100)])).age_s == 0
    with pytest.raises(BadInputError, match="now_s"):
        situation_of(DOCUMENT, Known(float("nan")))
    empty = situation_of(DOCUMENT, Known(5.0))
    assert forecast_content(MODEL, empty).next_cells[0].position == 0


def test_a_servers_own_runs_train_the_models() -> None:
    runs = [ran(i % 5, 10.0 * i) for i in range(40)]
    runs[7] = replace(runs[7], outcome=Outcome.REFUSED)
    moves = list(moves_of(DOCUMENT, runs, runs[:3]))
    assert len(moves) == 38
    assert moves[0][0].earlier == ((0, 1), (1, 2))
    assert moves[0][1:] == (1, moves[0][2], 9.0)
    cells = fit_cells((trail, after) for trail, after, _, _ in moves)
    delays = fit_delays((moment, gap) for _, _, moment, gap in moves)
    # Whoever ran these starts over after the last cell: the model has learned it from them.
    assert cells.forecast(moves[3][0])[0].position == 4
    assert delays.forecast(moves[-1][2]).within(10) > 0.6
