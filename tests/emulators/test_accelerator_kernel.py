"""What runs in a kernel knows any type of torch device, not CUDA alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Worker

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)

MIB = 1 << 20


def measured_peak() -> tuple[Any, ...]:
    import torch

    from jupyter_gpu_predict.kernel.memory import PeakMeter

    meter = PeakMeter("emu")
    unused = meter.end() if not torch.emu.is_initialized() else None
    kept = torch.ones(3 * MIB, dtype=torch.uint8, device="emu")
    meter.begin()
    more = torch.ones(5 * MIB, dtype=torch.uint8, device="emu")
    del more
    peak = meter.end()
    del kept
    return unused and (unused.peak_bytes, unused.source), peak, meter.refresh()


def test_the_peak_of_a_cell_is_the_devices_own(worker: Worker) -> None:
    unused, peak, after = worker.call(measured_peak)
    assert unused == (0, "torch.emu")
    assert (peak.peak_bytes, peak.end_bytes, peak.source) == (8 * MIB, 3 * MIB, "torch.emu")
    assert after == 0


def saved_and_loaded(folder: str) -> dict[str, Any]:
    import time

    import torch

    from jupyter_gpu_predict.snapshots.capture import capture
    from jupyter_gpu_predict.snapshots.restore import restore
    from jupyter_gpu_predict.snapshots.signing import load_or_create_key
    from jupyter_gpu_predict.snapshots.stores import open_store

    layer = torch.nn.Linear(300, 200).to("emu:1")
    layer(torch.ones(300, device="emu:1")).sum().backward()
    space: dict[str, Any] = {"layer": layer, "view": layer.weight.detach()[3:5], "on 0": None}
    space["on 0"] = torch.arange(3.0, device="emu:0")
    key, store = load_or_create_key(Path(folder) / "key"), open_store(Path(folder) / "store")
    report = capture(space, store, key, name="n", now_s=time.time(), kernel_id="k", digests=True)
    loaded: dict[str, Any] = {}
    restored = restore(store, report.snapshot_id, key, loaded, check=True)
    weight, view = loaded["layer"].weight, loaded["view"]
    return {
        "statuses": {v.status for v in (*report.variables, *restored.variables)},
        "devices": (str(weight.device), str(weight.grad.device), str(loaded["on 0"].device)),
        "equal": torch.equal(weight.cpu(), layer.weight.cpu())
        and torch.equal(weight.grad.cpu(), layer.weight.grad.cpu())
        and loaded["on 0"].tolist() == [0, 1, 2],
        "shared": view.data_ptr() == weight[3:5].data_ptr() != space["view"].data_ptr(),
    }


def test_tensors_of_any_device_with_an_allocator_are_saved_and_come_back(
    worker: Worker, tmp_path: Path
) -> None:
    assert worker.call(saved_and_loaded, str(tmp_path)) == {
        "statuses": {"saved", "restored"},
        "devices": ("emu:1", "emu:1", "emu:0"),
        "equal": True,
        "shared": True,
    }
