from __future__ import annotations

import importlib.util
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpu_predict.devices import doctor
from jupyter_gpu_predict.devices.doctor import check_devices
from jupyter_gpu_predict.devices.visible import visible_groups

NAMES = [
    "NVIDIA driver",
    "NVML answers",
    "nvidia-ml-py",
    "torch",
    "torch and CUDA match",
    "CUDA_VISIBLE_DEVICES",
    "driver checkpoint",
]


def fake_python(folder: Path, version: str, answer: str) -> str:
    """Return an "interpreter" whose torch says `answer`."""
    path = folder / "python"
    path.write_text(
        f"#!/bin/sh\ncase \"$2\" in *'import json, torch'*) {answer};; *) echo '{version}';; esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def torch_checks(python: str, timeout_s: float = 30.0, **driver: Any) -> list[doctor.Check]:
    known = doctor._Driver(**driver, entries=[]) if driver else None
    return doctor._check_torch(python, timeout_s, known)


def test_every_check_is_made_and_torch_is_not_imported_here() -> None:
    had = "torch" in sys.modules
    checks = {check.name: check for check in check_devices()}
    assert list(checks) == NAMES
    assert ("torch" in sys.modules) == had
    assert checks["nvidia-ml-py"].ok is True
    assert all(check.remedy for check in checks.values() if check.ok is False)
    if importlib.util.find_spec("torch"):
        assert checks["torch"].ok is True


def test_a_healthy_driver(nvml: Any, tmp_path: Path) -> None:
    answer = """echo '{"cuda": "13.0", "available": true, "devices": 2, "fault": null}'"""
    checks = nvml.ask(do="doctor", python=fake_python(tmp_path, "2.13.0", answer))
    assert checks["NVIDIA driver"]["ok"] is True
    assert checks["NVML answers"]["ok"] is True
    assert checks["NVML answers"]["detail"] == "Driver 580.1, CUDA up to 13.0, 2 GPU(s)."
    assert checks["torch and CUDA match"]["detail"] == "torch 2.13.0 (CUDA 13.0) uses 2 GPU(s)."
    assert checks["CUDA_VISIBLE_DEVICES"]["ok"] is True


def test_a_lost_gpu_is_found(nvml: Any, tmp_path: Path) -> None:
    nvml.set({"gpu.1.error.nvmlDeviceGetTemperature": 15})
    python = fake_python(tmp_path, "-", "exit 1")
    check = nvml.ask(do="doctor", python=python)["NVML answers"]
    assert check["ok"] is False
    assert "Stub GPU 1: The GPU no longer answers" in check["detail"]
    assert "nvidia-smi -r" in check["remedy"]


def test_no_torch(tmp_path: Path) -> None:
    first, second = torch_checks(fake_python(tmp_path, "-", "exit 1"))
    assert (first.ok, second.ok) == (None, None)
    assert "not installed" in first.detail


def test_an_old_torch(tmp_path: Path) -> None:
    answer = """echo '{"cuda": null, "available": false, "devices": 0, "fault": null}'"""
    first, second = torch_checks(fake_python(tmp_path, "2.11.0", answer))
    assert (first.ok, second.ok) == (False, None)
    assert first.remedy == "pip install 'torch>=2.12'"


@pytest.mark.parametrize(
    ("told", "ok", "words"),
    [
        ('"cuda": null, "available": false, "devices": 0, "fault": null', False, "without CUDA"),
        ('"cuda": "13.0", "available": false, "devices": 0, "fault": null', False, "up to 12.8"),
        ('"cuda": "12.9", "available": true, "devices": 1, "fault": null', True, "1 GPU"),
        ('"cuda": "12.6", "available": false, "devices": 0, "fault": null', False, "sees 0"),
        ('"cuda": "12.6", "available": true, "devices": 1, "fault": "E: x"', False, "E: x"),
    ],
)
def test_torch_against_the_driver(tmp_path: Path, told: str, ok: bool, words: str) -> None:
    python = fake_python(tmp_path, "2.13.0+cu", f"echo noise; echo '{{{told}}}'")
    first, second = torch_checks(python, version="570.1", cuda=(12, 8), uuids=("GPU-0",))
    assert first.ok is True
    assert second.ok is ok
    assert words in second.detail
    assert bool(second.remedy) is not ok


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("echo 'ImportError: libcudart' >&2; exit 1", "ImportError: libcudart"),
        ("echo nonsense", "could not be asked"),
        ("exec sleep 60", "longer than"),
    ],
)
def test_a_torch_that_cannot_be_imported(tmp_path: Path, answer: str, words: str) -> None:
    timeout_s = 0.5 if "sleep" in answer else 30.0
    first, second = torch_checks(fake_python(tmp_path, "2.13.0", answer), timeout_s)
    assert (first.ok, second.ok) == (False, None)
    assert words in first.detail
    assert "import torch" in first.remedy


def test_an_interpreter_that_there_is_not(tmp_path: Path) -> None:
    first, _ = torch_checks(str(tmp_path / "nothing"))
    assert first.ok is False
    assert str(tmp_path / "nothing") in first.detail


@pytest.mark.parametrize(
    ("setting", "ok"), [(None, True), ("1", True), ("GPU-0,1", True), ("7", False), ("", False)]
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, setting: str | None, ok: bool) -> None:
    if setting is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    uuids = ("GPU-0", "GPU-1")
    known = doctor._Driver("580.1", None, uuids, visible_groups(uuids, setting))
    check = doctor._check_visible(known)
    assert check.ok is ok
    assert ("GPU-0, GPU-1" in check.remedy) is not ok
    assert doctor._check_visible(None).ok is None
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == setting
