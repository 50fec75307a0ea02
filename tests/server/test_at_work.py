"""Jupyter's view of who is at work."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpu_predict.server import at_work
from jupyter_gpu_predict.server.at_work import AtWork


def test_a_look_that_fails_does_not_end_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_work, "FAILED_S", 0.0)
    monkeypatch.setattr(at_work, "LOOK_S", 0.0)
    looks: list[int] = []

    def clock() -> float:
        looks.append(1)
        raise RuntimeError("dictionary changed size during iteration")

    async def story() -> None:
        loop: Any = SimpleNamespace(clock=clock, kernels={})
        watch = AtWork(loop, {})
        watch.start()
        for _ in range(1000):
            if len(looks) > 2:
                break
            await asyncio.sleep(0.001)
        await watch.close()
        assert len(looks) > 2

    asyncio.run(story())
