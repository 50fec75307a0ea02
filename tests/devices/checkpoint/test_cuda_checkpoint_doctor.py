"""What the doctor says of driver checkpoints, by the real helper and a stub of the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_gpu_predict.devices.doctor import check_checkpoint


def test_a_driver_that_has_them(stage: Any) -> None:
    check = check_checkpoint(stage.server())
    assert check.ok
    assert "libcuda" in check.detail


def test_a_driver_that_is_too_old(
    stub_cuda: Any, old_libraries: Path, make_stage: Any, tmp_path: Path
) -> None:
    stub = stub_cuda.StubCuda(old_libraries, tmp_path)
    try:
        check = check_checkpoint(make_stage(stub).server())
    finally:
        stub.close()
    assert check.ok is False
    assert "has no checkpoint calls" in check.detail
    assert check.remedy


def test_a_helper_that_cannot_be_started(stage: Any) -> None:
    check = check_checkpoint(stage.server(python="/nonexistent/python"))
    assert check.ok is False
    assert "helper" in check.detail
