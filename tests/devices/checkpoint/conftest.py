from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jupyter_gpu_predict.devices.cuda_checkpoint import CheckpointRecord, CudaCheckpoint, Limits

SOURCE = Path(__file__).resolve().parents[2] / "emulators" / "checkpoint" / "stub_cuda.py"
SLOW_MACHINE = Limits(start_s=120, look_s=120, state_s=60, lock_grace_s=60, copy_s=60)


@pytest.fixture(scope="session")
def stub_cuda() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stub_cuda", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _build(module: ModuleType, folder: Path, *, old: bool = False) -> Path:
    if not sys.platform.startswith("linux"):
        pytest.skip("driver checkpoints, and the stub of the driver, are for Linux only")
    libraries = module.build(folder, old=old)
    if libraries is None:
        pytest.skip("no C compiler (cc) to build the stub of the CUDA driver with")
    return libraries


@pytest.fixture(scope="session")
def libraries(stub_cuda: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(stub_cuda, tmp_path_factory.mktemp("cuda"))


@pytest.fixture(scope="session")
def old_libraries(stub_cuda: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(stub_cuda, tmp_path_factory.mktemp("cuda_old"), old=True)


@pytest.fixture
def stub(stub_cuda: ModuleType, libraries: Path, tmp_path: Path) -> Iterator[Any]:
    made = stub_cuda.StubCuda(libraries, tmp_path)
    yield made
    made.close()


class Stage:
    """A server's side of checkpoints, whose records are kept as text as a database would."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub
        self.kept: dict[str, str] = {}
        self.times_kept = 0

    def keep(self, record: CheckpointRecord) -> None:
        self.kept[record.kernel_id] = json.dumps(record.to_json())
        self.times_kept += 1

    def record(self, kernel_id: str = "k") -> CheckpointRecord:
        text = self.kept.get(kernel_id)
        return CheckpointRecord.from_json(json.loads(text)) if text else CheckpointRecord(kernel_id)

    def server(self, **options: Any) -> CudaCheckpoint:
        """Start a server's checkpoints from what was kept."""
        records = [self.record(kernel_id) for kernel_id in self.kept]
        settings = {"way": "libcuda", "limits": SLOW_MACHINE, "environ": self.stub.environ}
        return CudaCheckpoint(self.keep, records, **{**settings, **options})


@pytest.fixture
def stage(stub: Any) -> Stage:
    return Stage(stub)


@pytest.fixture(scope="session")
def make_stage() -> type[Stage]:
    return Stage
