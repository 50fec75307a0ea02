from __future__ import annotations

import json
from typing import Any

import pytest

from jupyter_gpu_predict.devices.cuda_checkpoint import CheckpointRecord, CudaCheckpoint, Limits

SLOW_MACHINE = Limits(start_s=120, look_s=120, state_s=60, lock_grace_s=60, copy_s=60)


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
