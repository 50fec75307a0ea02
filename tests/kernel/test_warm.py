"""The device's context and libraries ahead of use; on the emulated accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Devices, Worker

pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


@pytest.fixture
def worker(accelerator: None, tmp_path: Path) -> Iterator[Worker]:
    with Worker(Devices(tmp_path / "ledger", (256 * MIB,), context_bytes=30 * MIB)) as process:
        yield process


def warm_twice() -> dict[str, Any]:
    import torch

    from jupyter_gpu_predict.kernel.warm import is_warm, warm_up

    torch.manual_seed(7)
    states = torch.get_rng_state(), torch.emu.get_rng_state()
    free = torch.emu.mem_get_info()[0]
    before = torch.emu.is_initialized()
    first, second = warm_up("emu"), warm_up("emu")
    return {
        "before": before,
        "after": torch.emu.is_initialized(),
        "times": (first, second),
        "warm": is_warm("emu"),
        "taken": free - torch.emu.mem_get_info()[0],
        "same": torch.equal(states[0], torch.get_rng_state())
        and torch.equal(states[1], torch.emu.get_rng_state()),
        "grad": torch.is_grad_enabled() and not torch.is_inference_mode_enabled(),
    }


def test_the_context_is_there_and_nothing_else_has_changed(worker: Worker) -> None:
    found = worker.call(warm_twice)
    assert found["warm"]
    assert found["times"][0] > 0
    assert found["times"][1] == 0
    assert found["taken"] == 30 * MIB
    assert found["same"]
    assert found["grad"]


def warm_without_room() -> str:
    import torch

    from jupyter_gpu_predict.kernel.warm import is_warm, warm_up

    torch.emu.set_device_lost(0)
    try:
        warm_up("emu")
    except RuntimeError as error:
        return f"{is_warm('emu')} {type(error).__name__}"
    return "nothing was raised"


def test_a_lost_device_is_not_taken_for_warm(worker: Worker) -> None:
    assert worker.call(warm_without_room).startswith("False ")


def test_simulated_gpus_need_no_warming() -> None:
    from jupyter_gpu_predict.kernel.warm import warm_up

    assert warm_up("simulated") == 0.0
