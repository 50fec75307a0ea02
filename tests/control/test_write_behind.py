from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from jupyter_gpu_predict.control.forecasting import ForecastWorker
from jupyter_gpu_predict.control.loop import ControlLoop
from jupyter_gpu_predict.control.operations import Operations
from jupyter_gpu_predict.core.model import MIB, PolicySettings
from jupyter_gpu_predict.devices.simulated import SimulatedGpus
from jupyter_gpu_predict.store.trace_store import Store


def test_one_bad_write_costs_no_other_and_closing_writes_the_rest(tmp_path: Path) -> None:
    forecasting = ForecastWorker()

    async def scenario(store: Store) -> list[dict[str, Any]]:
        loop = ControlLoop(
            backend=SimulatedGpus(1, 512 * MIB),
            store=store,
            forecasting=forecasting,
            operations=Operations(time.time, lambda operation: None),
            emit=lambda kind, data: None,
            settings=PolicySettings(),
        )
        await loop.start()
        loop.event("first")
        loop.event("bad", value=float("nan"))
        loop.event("second")
        end = time.monotonic() + 60
        while len(await asyncio.to_thread(store.events)) < 2 and time.monotonic() < end:
            await asyncio.sleep(0.02)
        early = await asyncio.to_thread(store.events)
        loop.event("last")
        await loop.close()
        await forecasting.close()
        assert [event["kind"] for event in early if event["kind"] != "risk"] == ["first", "second"]
        return await asyncio.to_thread(store.events)

    with Store(f"sqlite:///{tmp_path / 'state.db'}") as store:
        events = asyncio.run(scenario(store))
    kinds = [event["kind"] for event in events if event["kind"] != "risk"]
    assert kinds == ["first", "second", "last"]
