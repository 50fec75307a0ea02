from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_gpu_predict.core.model import RiskLevel
from jupyter_gpu_predict.core.risk import assess
from jupyter_gpu_predict.devices.choose import choose_backend
from jupyter_gpu_predict.devices.doctor import check_devices
from jupyter_gpu_predict.devices.nvml import NvmlGpus
from jupyter_gpu_predict.errors import ConflictError, DeviceError

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpus() -> Iterator[NvmlGpus]:
    backend = NvmlGpus()
    try:
        backend.start()
    except DeviceError as error:
        pytest.skip(f"no real NVIDIA GPU: {error}")
    yield backend
    backend.close()


def test_a_real_gpu_says_what_it_is(gpus: NvmlGpus) -> None:
    first = gpus.read()[0]
    assert first.uuid.startswith("GPU-")
    assert first.name
    assert first.total_bytes > 1 << 30
    assert first.used_bytes is not None
    assert 0 <= first.used_bytes <= first.total_bytes
    assert not first.simulated
    assert not first.lost
    assert first.problems == ()
    assert first.health.query_s is not None


def test_a_real_gpu_is_not_critical_and_stays_itself(gpus: NvmlGpus) -> None:
    before, now = gpus.read()[0], gpus.read()[0]
    assert before.uuid == now.uuid
    risk = assess(now.uuid, now, before, 0.0)
    assert risk.level is not RiskLevel.CRITICAL, risk.evidence


def test_a_real_gpu_is_chosen_and_keeps_its_health(gpus: NvmlGpus) -> None:
    backend, sentence = choose_backend("auto")
    assert backend.name == "nvml"
    assert gpus.driver_version in sentence
    backend.close()
    uuid = gpus.read()[0].uuid
    assert gpus.environment(uuid) == {"CUDA_VISIBLE_DEVICES": uuid}
    with pytest.raises(ConflictError, match="real GPU"):
        gpus.script_health(uuid, lost=True)


def test_a_process_on_a_real_gpu_is_listed(gpus: NvmlGpus) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use CUDA")
    size = 64 << 20
    held = torch.ones(size, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    listed = [dict(gpu.processes) for gpu in gpus.read()]
    # The pid is not compared: in a container the driver reports the host's.
    assert any(memory >= size for processes in listed for memory in processes.values())
    del held


def test_the_doctor_finds_the_driver(gpus: NvmlGpus) -> None:
    checks = {check.name: check for check in check_devices()}
    assert checks["NVML answers"].ok is True, checks["NVML answers"].detail
    assert checks["NVIDIA driver"].ok is True
