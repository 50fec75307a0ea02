"""An interrupt that meets the agent's own work costs no cell its reply and the kernel nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kernel_bench import Bench
from live_server import Run

from jupyter_gpu_predict.demo.client import Notebook

SETUP = """
import os, signal, sys, torch
t = torch.ones(8 << 20, dtype=torch.uint8)
agent = get_ipython().kernel._gpu_predict_agent
def interrupted(owner, name):
    real = getattr(owner, name)
    def once(*args, **kwargs):
        setattr(owner, name, real)
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **kwargs)
    setattr(owner, name, once)
class InterruptedOnceCounted:
    def __init__(self, lock):
        self.lock = lock
    def __enter__(self):
        return self.lock.__enter__()
    def __exit__(self, *what):
        self.lock.__exit__(*what)
        if sys._getframe(1).f_code.co_name == "_admit":
            agent.lock = self.lock
            raise KeyboardInterrupt
"""


@pytest.fixture(scope="module")
def notebook(bench: Bench, run: Run[Any]) -> Iterator[Notebook]:
    opened = run(bench.server.open())
    run(bench.say(opened, SETUP))
    yield opened
    run(bench.close(opened))


@pytest.mark.parametrize("step", ["agent.recorder, 'begin'", "agent.saves, 'before_cell'"])
def test_before_a_cell_it_is_the_cells(
    bench: Bench, notebook: Notebook, run: Run[Any], step: str
) -> None:
    async def story() -> None:
        await bench.say(notebook, f"ran = 0; interrupted({step})")
        cell = await notebook.run("ran = 1")
        assert cell.status == "error"
        assert "interrupted before it began" in cell.text
        assert await bench.say(notebook, "ran") == "0"
        assert (await bench.suspend(notebook))["suspended_bytes"] >= 8 << 20

    run(story())


def test_just_after_it_was_let_in_it_is_counted_once(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def story() -> None:
        await bench.say(notebook, "ran = 0; agent.lock = InterruptedOnceCounted(agent.lock)")
        cell = await notebook.run("ran = 1")
        assert cell.status == "error"
        assert "interrupted before it began" in cell.text
        assert await bench.say(notebook, "ran, agent.active") == "(0, 1)"
        assert (await bench.suspend(notebook))["suspended_bytes"] >= 8 << 20

    run(story())


def test_while_its_memory_comes_back_it_is_the_cells(
    bench: Bench, notebook: Notebook, run: Run[Any]
) -> None:
    async def story() -> None:
        await bench.say(notebook, "ran = 0; interrupted(agent, 'restore_now')")
        await bench.suspend(notebook)
        assert (await notebook.run("ran = 1")).status == "error"
        assert await bench.say(notebook, "ran, int(t.sum())") == f"(0, {8 << 20})"
        assert (await bench.suspend(notebook))["suspended_bytes"] >= 8 << 20

    run(story())


def test_after_a_cell_it_is_nobodys(bench: Bench, notebook: Notebook, run: Run[Any]) -> None:
    async def story() -> None:
        await bench.say(notebook, "interrupted(agent.recorder, 'end')")
        assert await bench.say(notebook, "1 + 1") == "2"
        assert await bench.say(notebook, "int(t.sum())") == f"{8 << 20}"
        assert (await bench.suspend(notebook))["suspended_bytes"] >= 8 << 20

    run(story())
