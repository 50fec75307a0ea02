from __future__ import annotations

from typing import Any

import pytest

from jupyter_gpu_predict.core.model import MIB
from jupyter_gpu_predict.devices.choose import choose_backend
from jupyter_gpu_predict.errors import BadInputError


def test_simulated_gpus_on_request() -> None:
    backend, sentence = choose_backend(
        "simulated", simulated_count=1, simulated_memory_bytes=64 * MIB
    )
    assert (backend.name, backend.simulated) == ("simulated", True)
    assert [gpu.total_bytes for gpu in backend.read()] == [64 * MIB]
    assert sentence == (
        "Simulated GPUs were asked for: using 1 simulated GPU of 64 MiB host memory each."
    )


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"'cuda'.*auto, nvml, simulated"):
        choose_backend("cuda")


def test_real_gpus_where_a_driver_answers(nvml: Any) -> None:
    nvml.set({"gpu.1.name": "Other GPU"})
    assert nvml.ask(do="choose", backend="auto") == [
        "nvml",
        "The NVIDIA driver 580.1 answered: using 1 x Stub GPU, 1 x Other GPU.",
    ]


def test_simulated_gpus_where_none_does_and_the_reason_is_told(nvml: Any) -> None:
    nvml.set({"error.nvmlInitWithFlags": 9})
    name, sentence = nvml.ask(do="choose", backend="auto")
    assert name == "simulated"
    assert sentence == (
        "No NVIDIA driver answered (nvmlInit answered Driver Not Loaded (NVML 9)): using 2 "
        "simulated GPUs of 512 MiB host memory each."
    )
    refused = nvml.ask(do="choose", backend="nvml")
    assert refused["error"] == "device"
    assert "Driver Not Loaded" in refused["message"]
    assert "GpuPredict.device_backend = 'simulated'" in refused["message"]


def test_a_driver_without_gpus_is_no_choice(nvml: Any) -> None:
    nvml.set({"count": 0})
    name, sentence = nvml.ask(do="choose", backend="auto")
    assert name == "simulated"
    assert sentence.startswith("The NVIDIA driver 580.1 lists no GPU: using 2 simulated")
    assert "lists no GPU" in nvml.ask(do="choose", backend="nvml")["message"]
