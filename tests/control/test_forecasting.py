from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import psutil
import pytest

from jupyter_gpu_predict.control.forecast_request import SPAN_S, prepare
from jupyter_gpu_predict.control.forecasting import PACKAGE_PARENT, ForecastWorker
from jupyter_gpu_predict.core.forecast.content import Situation
from jupyter_gpu_predict.core.forecast.delay import Moment
from jupyter_gpu_predict.core.forecast.demand import CellDemand
from jupyter_gpu_predict.core.forecast.demand_model import demand_record
from jupyter_gpu_predict.core.model import (
    HORIZONS_S,
    CellRun,
    DemandSample,
    Forecast,
    Outcome,
    Quantiles,
)
from jupyter_gpu_predict.core.trace.document import Trail
from jupyter_gpu_predict.core.trace.series import demand_series
from jupyter_gpu_predict.errors import BadInputError, ConflictError, GpuPredictError
from jupyter_gpu_predict.training.demand import UseSeries, examples, train_classifier

NOW = 1_700_000_000.0

FAKE = """
import json, os, sys, time
print(json.dumps({"ready": {}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    at = {"hang": 60, "slow": 0.3}.get(request["kernel_id"], 0)
    time.sleep(at)
    if request["kernel_id"] == "die":
        print("no memory left", file=sys.stderr, flush=True)
        os._exit(9)
    if request["kernel_id"] == "babble":
        print("Hello from a library", flush=True)
    forecast = {"kernel_id": request["kernel_id"], "made_s": request["now_s"], "model": "fake",
                "basis": "kernel", "horizons": [], "backtest": None, "candidates": []}
    print(json.dumps({"id": request["id"], "forecast": forecast, "notes": [], "cpu_s": 0,
                      "scored": False}), flush=True)
"""


def bursts(kernel_id: str, seed: int = 3, span_s: float = 600) -> list[CellRun]:
    chance = random.Random(seed)
    t, runs = NOW - span_s, []
    while t < NOW - 40:
        t += chance.expovariate(1 / 20)
        length, peak = chance.expovariate(1 / 8), chance.randrange(4) * 10**9
        runs.append(
            CellRun(
                kernel_id,
                "n.ipynb",
                "c",
                f"d{peak}",
                t,
                t + length,
                peak,
                peak // 2,
                "torch",
                0,
                length,
                Outcome.OK,
            )
        )
        t += length
    return runs


def with_worker(
    use: Callable[[ForecastWorker], Awaitable[None]], worker: ForecastWorker | None = None
) -> None:
    async def body() -> None:
        made = worker or ForecastWorker()
        try:
            await asyncio.wait_for(use(made), 60)
        finally:
            await made.close()

    asyncio.run(body())


def fake(timeout_s: float = 30.0) -> ForecastWorker:
    return ForecastWorker(timeout_s=timeout_s, command=(sys.executable, "-c", FAKE))


async def ask(worker: ForecastWorker, kernel_id: str, now_s: float = NOW) -> Forecast:
    return await worker.refresh(kernel_id, [], [], [], "none", now_s)


def test_a_learned_model_is_taken_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    """The worker reads each new file once and goes on with the old model if it cannot."""
    model = tmp_path / "demand" / "0001.json"
    model.parent.mkdir()
    model.write_text(json.dumps(small_model()))
    serving: list[Path | None] = [None]

    async def use(worker: ForecastWorker) -> None:
        async def fresh(kernel_id: str) -> tuple[set[str], tuple[str, ...]]:
            # A kernel's scores hold for 30 s: each look is at another kernel.
            runs = bursts(kernel_id)
            forecast = await worker.refresh(kernel_id, [], runs, [], "kernel", NOW)
            return {c.model for c in forecast.candidates}, forecast.notes

        assert "boosted" not in (await fresh("first"))[0]
        serving[0] = model
        assert "boosted" in (await fresh("second"))[0]
        cut = model.with_name("0002.json")
        cut.write_bytes(model.read_bytes()[:-100])
        serving[0] = cut
        names, notes = await fresh("third")
        assert "boosted" in names
        assert any("demand 2" in note and "goes on serving" in note for note in notes)
        # Written anew under the same name, it is read anew.
        cut.write_bytes(model.read_bytes())
        os.utime(cut, ns=(1, 1))
        names, notes = await fresh("written again")
        assert "boosted" in names
        assert not any("demand 2" in note for note in notes)
        serving[0] = None
        names, notes = await fresh("fourth")
        assert "boosted" not in names
        assert not any("demand 2" in note for note in notes)

    demand = ForecastWorker(model_file=lambda kind: serving[0] if kind == "demand" else None)
    with_worker(use, demand)


def test_the_content_is_a_candidate_whose_model_can_be_replaced(tmp_path: Path) -> None:
    """A version that is damaged, or trained on other features, leaves the one before it serving."""
    weights = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
    shipped = json.loads(weights.read_text())
    file = tmp_path / "content" / "0002.json"
    file.parent.mkdir()
    serving: list[Path | None] = [None]
    took = CellDemand(1.0, Quantiles(1e9, 2e9, 3e9), Quantiles(1, 2, 3), "cell")
    here = Situation(Trail(2, (0,)), (CellDemand(0.02), took), Moment((1.0,), 1.0, 1))

    async def use(worker: ForecastWorker) -> None:
        async def say(situation: Situation = here) -> Forecast:
            return await worker.refresh("k", [], [], [], "none", NOW, situation)

        first = await say()
        assert first.next_cells[0].position == 1
        assert first.need_model == "content"
        assert [n.model for n in first.needs] == ["prior", "content"]
        assert first.horizons[-1].need_probability == first.needs[1].probabilities[-1] > 0.5
        assert first.next_s is not None
        assert first.burst_s == Quantiles(1, 2, 3)

        slow = {name: -9.0 if "from" in name else w for name, w in shipped["delay"].items()}
        for number, record, same in (
            (2, {**shipped, "delay": slow}, False),
            (3, {**shipped, "delay": {**slow, "mood": 1.0}}, True),
            (4, {**shipped, "version": 99}, True),
        ):
            before = await say()
            serving[0] = file.with_name(f"000{number}.json")
            serving[0].write_text(json.dumps(record))
            after = await say()
            assert (after.needs[1] == before.needs[1]) == same
            assert any("train anew" in note for note in after.notes) == same
        serving[0] = None
        assert (await say()).needs == first.needs

        # What makes no sense costs the content only.
        odd = await say(replace(here, demands=here.demands[:1]))
        assert (odd.need_model, odd.next_cells) == ("prior", ())
        assert any("demands for a document" in note for note in odd.notes)

    content = ForecastWorker(model_file=lambda kind: serving[0] if kind == "content" else None)
    with_worker(use, content)


def small_model() -> dict[str, object]:
    chance = random.Random(2)
    past = []
    for owner in range(12):
        busy = [int(chance.random() < 0.3) for _ in range(300)]
        past.append(UseSeries(f"o{owner}", [float(b) for b in busy], busy, 5.0))
    data = examples(past, (1, 3, 6, 12, 60), seed=1)
    return demand_record(
        train_classifier(data.features, data.at, seed=1, rounds=5),
        train_classifier(data.features, data.within, seed=1, rounds=5),
    )


def test_the_real_worker_backtests_prophet_and_serves_the_winner() -> None:
    async def use(worker: ForecastWorker) -> None:
        assert worker.pid is None
        forecasts = await asyncio.gather(
            *(worker.refresh(k, [], bursts(k, i), [], "kernel", NOW) for i, k in enumerate("abc"))
        )
        assert [f.kernel_id for f in forecasts] == ["a", "b", "c"]
        for forecast in forecasts:
            assert {c.model for c in forecast.candidates} == {
                "persistence",
                "empirical",
                "prophet",
            }
            assert forecast.backtest in forecast.candidates
            assert forecast.backtest is not None
            assert forecast.model == forecast.backtest.model
            assert forecast.backtest.pinball == min(c.pinball for c in forecast.candidates)
            assert tuple(h.horizon_s for h in forecast.horizons) == HORIZONS_S
        first = worker.details("a")
        assert first is not None
        assert first.scored
        assert first.cpu_s > 0

        again = await worker.refresh("a", [], bursts("a", 0), [], "kernel", NOW + 5)
        kept = worker.details("a")
        assert kept is not None
        assert not kept.scored
        assert again.candidates == forecasts[0].candidates
        worker.forget("a")
        assert worker.details("a") is None

        with pytest.raises(BadInputError, match="basis"):
            await worker.refresh("a", [], [], [], "guess", NOW)
        prior = await worker.refresh("new", [], [], bursts("old"), "notebook", NOW)
        assert (prior.model, prior.basis) == ("prior", "notebook")

        # Low priority, and out of reach of an interrupt typed into the server's terminal.
        process = psutil.Process(worker.pid)
        assert process.nice() >= 10
        assert os.getsid(process.pid) != os.getsid(0)
        process.suspend()
        waiting = asyncio.create_task(ask(worker, "c"))
        await asyncio.sleep(0.1)
        process.kill()
        with pytest.raises(GpuPredictError, match="died"):
            await waiting
        assert (await ask(worker, "c")).basis == "none"
        last = psutil.Process(worker.pid)
        folder = Path(last.environ()["TMPDIR"])
        assert folder.is_dir()
        await worker.close()
        assert worker.pid is None
        assert not last.is_running()
        assert not folder.exists()
        with pytest.raises(ConflictError):
            await ask(worker, "c")

    with_worker(use)


def test_the_worker_speaks_only_json_on_its_stdout_and_ends_with_its_stdin() -> None:
    # A request that cannot be carried out is answered, and the next one too.
    lines = [b"no json", json.dumps({"id": 7}).encode(), b'{"id": 8, "kernel_id": "k"}']
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_gpu_predict.control.forecast_worker"],
        input=b"\n".join(lines) + b"\n",
        capture_output=True,
        cwd=PACKAGE_PARENT,
        timeout=60,
        check=True,
    )
    ready, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["ready"]["pid"] > 0
    assert [a["id"] for a in answers] == [None, 7, 8]
    assert all(a["error"]["reason"] == "unexpected" for a in answers)
    assert b"Traceback" in done.stderr


def test_many_kernels_are_pipelined_and_matched_by_id() -> None:
    async def use(worker: ForecastWorker) -> None:
        names = [f"k{i}" for i in range(50)]
        found = await asyncio.gather(*(ask(worker, name) for name in names))
        assert [f.kernel_id for f in found] == names

    with_worker(use, fake())


def test_of_one_kernel_only_the_newest_request_waits() -> None:
    async def use(worker: ForecastWorker) -> None:
        await ask(worker, "warm")
        first = asyncio.create_task(ask(worker, "slow", NOW))
        await asyncio.sleep(0.1)
        later = [asyncio.create_task(ask(worker, "slow", NOW + i)) for i in (1, 2, 3)]
        assert (await first).made_s == NOW
        assert [f.made_s for f in await asyncio.gather(*later)] == [NOW + 3] * 3

    with_worker(use, fake())


def test_a_worker_that_dies_is_named_with_its_last_words_and_replaced() -> None:
    async def use(worker: ForecastWorker) -> None:
        await ask(worker, "warm")
        dead = worker.pid
        with pytest.raises(GpuPredictError, match=r"status 9.*no memory left"):
            await ask(worker, "die")
        assert (await ask(worker, "next")).model == "fake"
        assert worker.pid not in {None, dead}

    with_worker(use, fake())


def test_a_worker_that_hangs_is_killed_and_replaced() -> None:
    async def use(worker: ForecastWorker) -> None:
        await ask(worker, "warm")
        hung = psutil.Process(worker.pid)
        found = await asyncio.gather(
            ask(worker, "hang"), ask(worker, "behind"), return_exceptions=True
        )
        for error in found:
            assert isinstance(error, GpuPredictError)
            assert "answered nothing for 0.5 s" in str(error)
        assert not hung.is_running()
        assert (await ask(worker, "next")).model == "fake"

    with_worker(use, fake(timeout_s=0.5))


def test_a_stopped_caller_stops_nobody_else() -> None:
    async def use(worker: ForecastWorker) -> None:
        await ask(worker, "warm")
        one, two = (asyncio.create_task(ask(worker, "slow")) for _ in range(2))
        await asyncio.sleep(0.05)
        one.cancel()
        assert (await two).model == "fake"

    with_worker(use, fake())


def test_closing_fails_what_is_under_way() -> None:
    async def use(worker: ForecastWorker) -> None:
        await ask(worker, "warm")
        process = psutil.Process(worker.pid)
        waiting = asyncio.create_task(ask(worker, "hang"))
        await asyncio.sleep(0.05)
        await worker.close()
        with pytest.raises(GpuPredictError, match="closed"):
            await waiting
        assert not process.is_running()

    with_worker(use, fake())


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/no/such/program",), "No such file"),
        ((sys.executable, "-c", "raise SystemExit('broken here')"), "broken here"),
        ((sys.executable, "-c", "print('not json')"), "no answer"),
    ],
)
def test_a_worker_that_cannot_start_says_why_and_is_not_tried_at_once(
    command: tuple[str, ...], why: str
) -> None:
    async def use(worker: ForecastWorker) -> None:
        with pytest.raises(GpuPredictError, match=why):
            await ask(worker, "k")
        with pytest.raises(GpuPredictError, match="next try in"):
            await ask(worker, "k")

    with_worker(use, ForecastWorker(command=command))


def test_what_is_no_answer_ends_the_worker() -> None:
    async def use(worker: ForecastWorker) -> None:
        with pytest.raises(GpuPredictError, match="no answer"):
            await ask(worker, "babble")
        assert (await ask(worker, "next")).model == "fake"

    with_worker(use, fake())


def test_malformed_records_are_refused_before_a_worker_starts() -> None:
    async def use(worker: ForecastWorker) -> None:
        bad = DemandSample("k", NOW, -1, 0, False)
        with pytest.raises(BadInputError, match="used_bytes"):
            await worker.refresh("k", [bad], [], [], "kernel", NOW)
        with pytest.raises(BadInputError, match="now_s"):
            await worker.refresh("k", [], [], [], "kernel", float("nan"))
        worst = replace(bursts("k")[0], end_s=float("inf"))
        with pytest.raises(BadInputError, match="end_s"):
            await worker.refresh("k", [], [], [worst], "notebook", NOW)
        assert worker.pid is None

    with_worker(use, fake())
    with pytest.raises(BadInputError, match="horizon"):
        ForecastWorker(horizons_s=(0,))


def test_what_is_left_out_of_a_request_changes_no_forecast() -> None:
    chance = random.Random(5)
    samples = [
        DemandSample("k", NOW - 2.5 * SPAN_S * chance.random(), chance.randrange(9), 0, False)
        for _ in range(3000)
    ]
    runs = bursts("k", span_s=2 * SPAN_S)
    request = asyncio.run(prepare("k", samples, runs, [], "kernel", NOW, HORIZONS_S))
    assert len(request.samples) < len(samples)
    assert len(request.runs) < len(runs)
    assert demand_series(request.samples, request.runs, now_s=NOW) == demand_series(
        samples, runs, now_s=NOW
    )
    line = json.loads(asyncio.run(request.line(4)))
    assert line["id"] == 4
    assert len(line["samples"]) == len(request.samples)


def test_a_worker_left_alone_in_a_hang_ends_by_itself() -> None:
    # Without the import of Prophet, so that the limit can be short.
    code = (
        "import sys, time; from jupyter_gpu_predict.control import forecast_worker as worker;"
        "worker._prepare_libraries = lambda: None; worker._answer = lambda *_: time.sleep(60);"
        "sys.argv[1:] = ['1']; worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"{}\n", capture_output=True, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGALRM
