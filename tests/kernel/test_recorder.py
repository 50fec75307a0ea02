"""Cell runs as the server records them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from kernel_bench import Bench, until
from live_server import Run

from jupyter_gpu_predict.core.trace.digest import source_digest
from jupyter_gpu_predict.demo.client import API, Notebook

MIB = 1 << 20
BYTES = "block = bytearray(64 << 20)\nfor i in range(0, len(block), 4096): block[i] = 1\ndel block"
IMPORT = "import torch"
HOLD = "held = torch.ones(24 << 20, dtype=torch.uint8)"
TRANSIENT = "big = torch.ones(96 << 20, dtype=torch.uint8); big.add_(1); del big"
DROP = "del held"
RAISE = "raise ValueError"


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    opened = run(bench.server.open("recorded.ipynb"))
    yield opened
    run(bench.close(opened))


@pytest.fixture(scope="module")
def trace(bench: Bench, notebook: Notebook, run: Run[Any]) -> dict[str, dict[str, Any]]:
    """Each cell's run, by its source."""
    cells = ("y = 1", BYTES, IMPORT, HOLD, TRANSIENT, DROP, RAISE)

    async def record() -> dict[str, dict[str, Any]]:
        await notebook.run("silent = 1", silent=True, store_history=False)
        for code in cells:
            await notebook.run(code)

        async def look() -> list[dict[str, Any]] | None:
            path = f"{API}/kernels/{notebook.kernel_id}/trace"
            runs: list[dict[str, Any]] = await bench.server.get(path)
            return runs if len(runs) >= len(cells) else None

        runs = await until(look)
        assert [r["digest"] for r in runs] == [source_digest(code) for code in cells]
        return dict(zip(cells, runs, strict=True))

    found: dict[str, dict[str, Any]] = run(record())
    return found


def test_a_cell_without_torch_is_measured_by_host_memory(trace: dict[str, Any]) -> None:
    before, cell = trace["y = 1"], trace[BYTES]
    for measured in (before, cell):
        assert measured["peak_bytes"] == measured["end_bytes"] == 0
        assert measured["peak_source"] == "none"
        assert measured["busy_s"] == 0
    assert before["host_peak_bytes"] > 10 * MIB
    assert cell["host_peak_bytes"] >= before["host_peak_bytes"] + 48 * MIB
    assert trace[IMPORT]["host_peak_bytes"] > 0


def test_a_torch_cell_is_measured_with_its_transient(trace: dict[str, Any]) -> None:
    hold, transient, drop = trace[HOLD], trace[TRANSIENT], trace[DROP]
    assert 24 * MIB <= hold["end_bytes"] < 32 * MIB
    assert hold["end_bytes"] <= hold["peak_bytes"] < 60 * MIB
    assert transient["peak_bytes"] >= (24 + 72) * MIB
    assert transient["peak_bytes"] < (24 + 96 + 32) * MIB
    assert drop["peak_bytes"] >= 24 * MIB
    assert hold["peak_source"] == "storages+VmHWM"
    assert hold["busy_s"] == pytest.approx(hold["end_s"] - hold["start_s"])


def test_outcomes_and_times_are_those_of_the_cells(trace: dict[str, Any]) -> None:
    runs = list(trace.values())
    assert [r["outcome"] for r in runs] == ["ok"] * (len(runs) - 1) + ["error"]
    assert all(r["start_s"] <= r["end_s"] for r in runs)
    assert all(a["end_s"] <= b["start_s"] for a, b in pairwise(runs))
    assert {r["notebook"] for r in runs} == {"recorded.ipynb"}


def test_a_cell_that_was_refused_is_recorded_as_such(
    bench: Bench, notebook: Notebook, trace: dict[str, Any], run: Run[Any]
) -> None:
    async def scenario() -> None:
        code = "%gpu need 900GiB\nx = 1"
        assert (await notebook.run(code)).status == "error"

        async def look() -> bool:
            runs = await bench.server.get(f"{API}/kernels/{notebook.kernel_id}/trace")
            return bool(
                runs[-1]["digest"] == source_digest(code) and runs[-1]["outcome"] == "refused"
            )

        await until(look)

    run(scenario())


def test_a_peak_seen_before_is_claimed_before_the_cell_runs_again(
    bench: Bench, notebook: Notebook, trace: dict[str, Any], run: Run[Any]
) -> None:
    async def scenario() -> None:
        before = await bench.model(notebook)
        await bench.say(notebook, TRANSIENT)
        await bench.until_model(
            notebook, lambda m: m["lease"]["bytes"] >= trace[TRANSIENT]["peak_bytes"]
        )
        assert before["lease"]["bytes"] < trace[TRANSIENT]["peak_bytes"]

    run(scenario())
