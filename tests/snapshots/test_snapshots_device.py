"""Snapshots of what lies on a device: an emulated accelerator, whose memory is the host's."""

from __future__ import annotations

import os
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Devices, Worker

KEY = bytes(range(32))
CODE = """
import torch
model = torch.nn.Linear(64, 64).to("emu")
optimizer = torch.optim.Adam(model.parameters())
model(torch.ones(8, 64, device="emu")).sum().backward()
optimizer.step()
view = model.weight.detach()[1:]
whole = torch.arange(100_000, device="emu:1")
few = torch.ones(3, device="emu")
"""

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def devices(accelerator: None, tmp_path_factory: pytest.TempPathFactory) -> Devices:
    return Devices(tmp_path_factory.mktemp("devices") / "ledger", (1 << 28, 1 << 28), 1 << 20)


@pytest.fixture(scope="module")
def worker(devices: Devices) -> Iterator[Worker]:
    with Worker(devices) as process:
        yield process


def save(folder: str) -> str:
    from jupyter_gpu_predict.snapshots import capture, open_store

    session = types.ModuleType("__main__").__dict__
    exec(CODE, session)
    made = capture(session, open_store(folder), KEY, name="a", now_s=1.7e9, kernel_id="k")
    lost = [(v.name, v.reason) for v in made.variables if v.status != "saved"]
    assert not lost, lost
    return made.snapshot_id


def check(folder: str, snapshot_id: str) -> dict[str, Any]:
    """Verify as after an automatic save, and note who holds device memory meanwhile."""
    from jupyter_gpu_predict.snapshots import open_store
    from jupyter_gpu_predict.snapshots.inspect.verify import read_report, verify_in_background

    store = open_store(folder)
    ledger = Path(os.environ["EMULATED_ACCELERATOR_LEDGER"])
    devices, holders = Devices(ledger, (0, 0)), set()
    process = verify_in_background(store, snapshot_id, KEY)
    while process.poll() is None:
        holders |= {pid for index in (0, 1) for pid in devices.holders(index)}
        time.sleep(0.01)
    report = read_report(store, snapshot_id, KEY)
    return {
        "others": holders - {os.getpid()},
        "own": os.getpid() in holders,
        "report": None if report is None else report.to_dict(),
    }


def test_verification_in_the_background_takes_no_device_memory(worker: Worker, tmp_path: Path):
    snapshot_id = worker.call(save, str(tmp_path))
    found = worker.call(check, str(tmp_path), snapshot_id)
    assert found["own"]
    assert not found["others"]
    wrong = [v for v in found["report"]["variables"] if v["status"] != "same"]
    assert not wrong
    assert found["report"]["verified"]


def random_again() -> list[bool]:
    import torch

    from jupyter_gpu_predict.snapshots.settings import apply_settings, capture_settings

    torch.emu.manual_seed_all(3)
    torch.rand(5, device="emu:1")
    state, faults = capture_settings()
    assert not faults
    drawn = [torch.rand(5, device=f"emu:{i}") for i in (0, 1)]
    assert not apply_settings(state)
    again = [torch.rand(5, device=f"emu:{i}") for i in (0, 1)]
    state["torch"]["device random"]["emu"] *= 2
    assert not apply_settings(state), "more devices than there are here"
    return [bool((a == b).all()) for a, b in zip(drawn, again, strict=True)]


def test_random_numbers_of_a_device_go_on_where_they_were(worker: Worker):
    assert worker.call(random_again) == [True, True]


def unused() -> tuple[Any, bool]:
    import torch

    from jupyter_gpu_predict.snapshots.settings import capture_settings

    state, _ = capture_settings()
    return state["torch"]["device random"], torch.emu.is_initialized()


def test_a_device_that_nobody_used_stays_unused(devices: Devices):
    with Worker(devices) as fresh:
        fresh.call(save_nothing)
        assert fresh.call(unused) == ({}, False)


def save_nothing() -> None:
    import torch  # noqa: F401
