"""MIG slices and MPS, read by the real nvidia-ml-py out of the stub NVML library."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOT_FOUND, NO_PERMISSION, NOT_LOADED, LOST, UNKNOWN = 6, 4, 9, 15, 999
EAGER = {"start_s": 20.0, "answer_s": 10.0, "lost_s": 30.0, "retry_s": 0.0}
GB = 1 << 30


def slice_of(gpu: int, place: int, uuid: str | None, **changes: Any) -> dict[str, Any]:
    """Return the stub's values of a slice; without a uuid those that take it away."""
    values: dict[str, Any] = {
        "uuid": uuid,
        "name": "Stub GPU MIG 1g.5gb",
        "total": 5 * GB,
        "used": 1 * GB,
        "processes": f"{200 + place}:{GB}",
        "instance": 7 + place,
    }
    return {f"gpu.{gpu}.mig.{place}.{name}": value for name, value in (values | changes).items()}


@pytest.fixture
def cut(nvml: Any) -> Any:
    """GPU 0 is in MIG mode and has two slices, with a gap between their places."""
    nvml.set({"gpu.0.mig": 1, **slice_of(0, 0, "MIG-a"), **slice_of(0, 2, "MIG-b")})
    nvml.ask(do="configure", patience=EAGER, environ={})
    return nvml


def read_until(nvml: Any, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    for _ in range(100):
        gpus = nvml.read()
        if holds(gpus):
            return gpus
    pytest.fail(f"it never came true: {gpus}")


def names(gpus: list[dict[str, Any]]) -> list[str]:
    return [gpu["uuid"] for gpu in gpus]


def test_slices_stand_in_place_of_their_gpu(cut: Any) -> None:
    first, second, whole = cut.read()
    assert names([first, second, whole]) == ["MIG-a", "MIG-b", "GPU-1"]
    assert (first["parent"], second["parent"], whole["parent"]) == ("GPU-0", "GPU-0", None)
    assert (first["index"], second["index"], whole["index"]) == (0, 0, 1)
    assert first["name"] == "Stub GPU MIG 1g.5gb"
    assert (first["total_bytes"], first["used_bytes"]) == (5 * GB, 1 * GB)
    assert (first["processes"], second["processes"]) == ([[200, GB]], [[202, GB]])
    # What only the GPU as a whole tells.
    assert (first["energy_j"], first["power_w"], first["temperature_c"]) == (7250.5, 125.5, 55.0)
    assert (first["utilization"], first["lost"], first["problems"]) == (None, False, [])


def test_a_slice_has_the_health_of_its_gpu_and_each_xid_once(cut: Any) -> None:
    cut.read()
    cut.set({"gpu.0.xids": "79", "gpu.0.ecc_uncorrected": 2})
    first, second, whole = cut.read()
    for part in (first, second):
        assert [xid["code"] for xid in part["health"]["xids"]] == [79]
        assert part["health"]["ecc_uncorrected"] == 2
    assert whole["health"]["xids"] == []
    assert [len(gpu["health"]["xids"]) for gpu in cut.read()] == [1, 1, 0]


def test_a_lost_gpu_takes_its_slices_along(cut: Any) -> None:
    cut.read()
    cut.set({"gpu.0.error.nvmlDeviceGetTemperature": LOST})
    first, second, whole = cut.read()
    assert [gpu["lost"] for gpu in (first, second, whole)] == [True, True, False]
    assert (first["used_bytes"], first["processes"]) == (None, [])
    assert any("no longer answers" in problem for problem in first["problems"])
    cut.set({"gpu.0.error.nvmlDeviceGetTemperature": None})
    assert [gpu["lost"] for gpu in cut.read()] == [False, False, False]


def test_slices_that_a_new_cut_ended_are_lost_and_the_new_ones_found(cut: Any) -> None:
    cut.read()
    cut.set({**slice_of(0, 0, None), **slice_of(0, 2, "MIG-c")})
    cut.set(slice_of(0, 5, "MIG-d"))
    gpus = {gpu["uuid"]: gpu for gpu in read_until(cut, lambda found: "MIG-d" in names(found))}
    assert [uuid for uuid, gpu in gpus.items() if gpu["lost"]] == ["MIG-a", "MIG-b"]
    assert set(gpus) == {"MIG-a", "MIG-b", "MIG-c", "MIG-d", "GPU-1"}
    assert gpus["MIG-c"]["used_bytes"] == 1 * GB
    # The same cut made again: the same slice, in whatever place.
    cut.set(slice_of(0, 1, "MIG-a"))
    read_until(cut, lambda found: not next(g for g in found if g["uuid"] == "MIG-a")["lost"])


def test_a_vanished_slice_is_lost_at_the_next_reading(cut: Any) -> None:
    cut.ask(do="configure", patience={**EAGER, "retry_s": 3600.0}, environ={})
    cut.read()
    cut.set(slice_of(0, 2, None))
    kept, gone, _ = cut.read()
    assert (kept["lost"], gone["lost"], gone["uuid"]) == (False, True, "MIG-b")
    assert "cut anew" in gone["problems"][0]


def test_another_slice_in_its_place_is_not_taken_for_it(cut: Any) -> None:
    cut.ask(do="configure", patience={**EAGER, "retry_s": 3600.0}, environ={})
    cut.read()
    cut.set(slice_of(0, 0, "MIG-x", used=9) | slice_of(0, 3, "MIG-a", used=11))
    assert cut.read()[0]["used_bytes"] == 11


def test_slices_of_others_are_not_shown(cut: Any) -> None:
    cut.set({"gpu.0.mig.2.error.nvmlDeviceGetMigDeviceHandleByIndex": NO_PERMISSION})
    assert names(cut.read()) == ["MIG-a", "GPU-1"]
    assert cut.read()[0]["problems"] == []


def test_a_slice_whose_memory_is_forbidden_says_so(cut: Any) -> None:
    cut.set({"gpu.0.mig.0.error.nvmlDeviceGetMemoryInfo_v2": NO_PERMISSION})
    first, second, _ = cut.read()
    assert (first["used_bytes"], first["lost"]) == (None, False)
    assert "NVML 4" in first["problems"][0]
    assert second["problems"] == []


def test_a_slice_that_cannot_be_told_for_a_moment_is_not_lost(cut: Any) -> None:
    cut.read()
    cut.set({"gpu.0.mig.0.error.nvmlDeviceGetMigDeviceHandleByIndex": UNKNOWN})
    for _ in range(5):
        first, second, whole = cut.read()
        assert [gpu["lost"] for gpu in (first, second, whole)] == [False, False, False]
    assert "NVML 999" in first["problems"][0]
    assert second["used_bytes"] == 1 * GB


@pytest.mark.parametrize("code", [3, 13, NO_PERMISSION])
def test_a_driver_without_mig_has_whole_gpus(nvml: Any, code: int) -> None:
    nvml.set({"error.nvmlDeviceGetMigMode": code})
    assert [(g["uuid"], g["parent"], g["problems"]) for g in nvml.read()] == [
        ("GPU-0", None, []),
        ("GPU-1", None, []),
    ]


def test_mig_mode_that_cannot_be_read_never_gives_a_whole_gpu(nvml: Any) -> None:
    nvml.set({"gpu.0.error.nvmlDeviceGetMigMode": UNKNOWN})
    unknown, other = nvml.read()
    assert (unknown["lost"], other["lost"]) == (True, False)
    assert "NVML 999" in unknown["problems"][0]


def test_mig_mode_without_slices_is_told(nvml: Any) -> None:
    nvml.set({"gpu.0.mig": 1})
    nvml.ask(do="configure", patience=EAGER, environ={})
    bare, _ = nvml.read()
    assert (bare["uuid"], bare["total_bytes"], bare["lost"]) == ("GPU-0", 0, False)
    assert "has no slices" in bare["problems"][0]
    nvml.set(slice_of(0, 0, "MIG-a"))
    read_until(nvml, lambda gpus: names(gpus) == ["MIG-a", "GPU-1"])


def test_a_gpu_that_is_switched_to_mig_mode_is_lost_and_comes_back(nvml: Any) -> None:
    nvml.set({"gpu.0.mig": 0})
    nvml.ask(do="configure", patience=EAGER, environ={})
    assert names(nvml.read()) == ["GPU-0", "GPU-1"]
    nvml.set({"gpu.0.mig": 1, **slice_of(0, 0, "MIG-a")})
    gpus = read_until(nvml, lambda found: "MIG-a" in names(found))
    assert [(g["uuid"], g["lost"]) for g in gpus] == [
        ("GPU-0", True),
        ("MIG-a", False),
        ("GPU-1", False),
    ]
    nvml.set({"gpu.0.mig": 0})
    gpus = read_until(nvml, lambda found: not found[0]["lost"])
    assert [(g["uuid"], g["lost"]) for g in gpus if g["index"] == 0] == [
        ("GPU-0", False),
        ("MIG-a", True),
    ]


def test_compute_instances_of_one_memory_are_given_a_share_each(cut: Any) -> None:
    cut.set({"gpu.0.mig.0.instance": 1, "gpu.0.mig.2.instance": 1})
    first, second, _ = cut.read()
    assert first["total_bytes"] == second["total_bytes"] == 5 * GB // 2
    assert first["used_bytes"] == GB
    assert cut.read()[0]["total_bytes"] == 5 * GB // 2


def test_a_slice_without_a_telling_name_is_named_by_its_attributes(cut: Any) -> None:
    cut.set({"gpu.0.mig.0.name": None, "gpu.0.mig.0.attributes": "1,3,20480"})
    cut.set({"gpu.0.mig.2.name": None, "gpu.0.mig.2.attributes": "2,2,10240"})
    assert [gpu["name"] for gpu in cut.read()] == [
        "Stub GPU MIG 1c.3g.20gb",
        "Stub GPU MIG 2g.10gb",
        "Stub GPU",
    ]


def test_the_driver_goes_and_comes_back_with_its_slices(cut: Any) -> None:
    cut.read()
    cut.set({"error.*": NOT_LOADED})
    assert all(gpu["lost"] for gpu in cut.read())
    cut.set({"error.*": None})
    assert [gpu["lost"] for gpu in cut.read()] == [False, False, False]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [("0", ["MIG-a", "MIG-b"]), ("MIG-b", ["MIG-b"]), ("GPU-1,MIG-a", ["MIG-a", "GPU-1"])],
)
def test_a_scheduler_may_have_given_the_server_slices(
    cut: Any, setting: str, seen: list[str]
) -> None:
    cut.ask(do="configure", patience=EAGER, environ={"CUDA_VISIBLE_DEVICES": setting})
    for _ in range(3):
        gpus = cut.read()
        assert names(gpus) == seen
        assert not any(gpu["lost"] for gpu in gpus)
    assert gpus[0]["health"]["ecc_corrected"] == 3


def test_a_kernel_is_bound_to_a_slice_and_never_to_the_gpu_it_is_of(cut: Any) -> None:
    cut.read()
    assert cut.ask(do="environment", uuid="MIG-b") == {"CUDA_VISIBLE_DEVICES": "MIG-b"}
    refused = cut.ask(do="environment", uuid="GPU-0")
    assert refused["error"] == "not_found"
    assert "MIG-a, MIG-b, GPU-1" in refused["message"]


def test_the_doctor_counts_slices(cut: Any) -> None:
    found = cut.ask(do="doctor", python="/bin/false")
    assert "3 GPU(s)" in found["NVML answers"]["detail"]


# --------------------------------------------------------------------------- MPS


def test_processes_under_mps_are_seen_once_and_the_gpu_says_so(nvml: Any) -> None:
    nvml.set({"gpu.0.mps": "101:8192,300:5"})
    shared, other = nvml.read()
    assert (shared["mps"], other["mps"]) == (True, False)
    assert shared["processes"] == [[100, 4096], [101, 8192], [300, 5]]


def test_a_driver_without_the_list_of_mps_is_no_problem(old_nvml: Any) -> None:
    assert not any("MPS" in problem for problem in old_nvml.read()[0]["problems"])


@pytest.fixture
def daemon(tmp_path: Path) -> Any:
    """A process that stands for the control daemon: only its pid file and its life count."""
    with subprocess.Popen(["sleep", "600"]) as process:
        pipes = tmp_path / "mps"
        pipes.mkdir()
        (pipes / "nvidia-cuda-mps-control.pid").write_text(f"{process.pid}\n")
        yield process, {"CUDA_MPS_PIPE_DIRECTORY": str(pipes)}
        process.kill()


def test_a_running_daemon_limits_new_kernels_to_their_lease(nvml: Any, daemon: Any) -> None:
    process, environ = daemon
    nvml.ask(do="configure", patience=EAGER, environ=environ)
    assert [gpu["mps"] for gpu in nvml.read()] == [True, True]
    assert nvml.ask(do="environment", uuid="GPU-0", lease_bytes=100 << 20) == {
        "CUDA_VISIBLE_DEVICES": "GPU-0",
        # 100 MiB of 1000 and what CUDA takes for itself; twice that share of the threads.
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=612M",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "20",
    }
    whole = nvml.ask(do="environment", uuid="GPU-0", lease_bytes=900 << 20)
    assert whole["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] == "0=1000M"
    assert whole["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "100"
    assert nvml.ask(do="environment", uuid="GPU-0") == {"CUDA_VISIBLE_DEVICES": "GPU-0"}
    process.kill()
    process.wait()
    assert [gpu["mps"] for gpu in nvml.read()] == [False, False]
    assert list(nvml.ask(do="environment", uuid="GPU-0", lease_bytes=5)) == ["CUDA_VISIBLE_DEVICES"]


def test_what_an_administrator_has_set_stays(nvml: Any, daemon: Any) -> None:
    environ = {**daemon[1], "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "50"}
    nvml.ask(do="configure", patience=EAGER, environ=environ)
    nvml.read()
    given = nvml.ask(do="environment", uuid="GPU-0", lease_bytes=5)
    assert set(given) == {"CUDA_VISIBLE_DEVICES", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"}


@pytest.mark.parametrize("text", ["", "0", "-1", "no number", "é"])
def test_a_damaged_pid_file_is_no_daemon(nvml: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "nvidia-cuda-mps-control.pid").write_text(text)
    environ = {"CUDA_MPS_PIPE_DIRECTORY": os.fspath(tmp_path)}
    nvml.ask(do="configure", patience=EAGER, environ=environ)
    assert [gpu["mps"] for gpu in nvml.read()] == [False, False]
