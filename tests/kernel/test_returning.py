"""After a reclaim a cell gets what it names at once, and the rest comes back between cells."""

from __future__ import annotations

from typing import Any

import pytest
from kernel_bench import Bench
from live_server import Run

pytest.importorskip("torch")

WAITS = "sum(not t.untyped_storage().resizable() for t in (a, b, c))"


def test_the_rest_comes_back_between_cells(bench: Bench, run: Run[Any]) -> None:
    async def scene() -> None:
        notebook = await bench.server.open()
        await bench.say(
            notebook,
            "import torch; a, b, c = (torch.full((6_000_000,), float(i)) for i in (1, 2, 3))",
        )
        before = (await bench.until_model(notebook, lambda m: m["used_bytes"] >= 72_000_000))[
            "used_bytes"
        ]
        await bench.suspend(notebook)
        # The cell itself sees that only one of them was brought back for it.
        text = await bench.say(
            notebook,
            "names = globals()\n"
            "print(a.sum().item(), [not names[n].untyped_storage().resizable() for n in 'abc'])",
        )
        assert "6000000.0 [False, True, True]" in text
        model = await bench.until_model(
            notebook, lambda m: m["used_bytes"] >= before and not m["suspended_bytes"]
        )
        assert model["state"] != "suspended"
        for _ in range(100):
            if "0" in await bench.say(notebook, f"print({WAITS})"):
                break
        text = await bench.say(notebook, f"print({WAITS}, b.sum().item(), c.sum().item())")
        assert "0 12000000.0 18000000.0" in text
        await bench.suspend(notebook)
        assert "18000000.0" in await bench.say(notebook, "print(c.sum().item())")
        await bench.close(notebook)

    run(scene())
