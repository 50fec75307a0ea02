from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

LOST, UNKNOWN, NOT_LOADED = 15, 999, 9
EAGER = {"start_s": 20.0, "answer_s": 10.0, "lost_s": 30.0, "retry_s": 0.0}
FUTURE = {**EAGER, "retry_s": 3600.0}


def configure(nvml: Any, patience: dict[str, float] | None = None, **environ: str) -> None:
    nvml.ask(do="configure", patience=patience or EAGER, environ=environ)


def read_until(nvml: Any, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Read until `holds` is true: how soon a GPU answers depends on the machine's load."""
    for _ in range(100):
        gpus = nvml.read()
        if holds(gpus):
            return gpus
    pytest.fail(f"it never came true: {gpus}")


def test_healthy_gpus_say_everything(nvml: Any) -> None:
    assert nvml.ask(do="start") == ["580.1", [13, 0]]
    first, second = nvml.read()
    assert (first["uuid"], second["uuid"], second["index"]) == ("GPU-0", "GPU-1", 1)
    health = first.pop("health")
    query_s = health.pop("query_s")
    assert query_s > 0
    assert first == {
        "uuid": "GPU-0",
        "index": 0,
        "name": "Stub GPU",
        "total_bytes": (1 << 30) - (24 << 20),
        "simulated": False,
        "used_bytes": 100 << 20,
        "utilization": 0.37,
        "temperature_c": 55.0,
        "power_w": 125.5,
        "energy_j": 7250.5,
        "processes": [[100, 4096], [101, 8192]],
        "lost": False,
        "problems": [],
        "parent": None,
        "mps": False,
    }
    assert health == {
        "ecc_corrected": 3,
        "ecc_uncorrected": 0,
        "ecc_uncontained": 0,
        "remapped_rows": 1,
        "remap_pending": False,
        "remap_failed": False,
        "retired_pages": 0,
        "xids": [],
        "recovery_action": "none",
        "thermal_slowdown": False,
        "power_brake": False,
        "temperature_c": 55.0,
        "temperature_limit_c": 90.0,
        "pcie_replays": 2,
    }


@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilization"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetMemoryInfo_v2", "used_bytes"),
    ],
)
def test_an_unknown_error_costs_one_value_and_is_named(
    nvml: Any, function: str, field: str
) -> None:
    whole = nvml.read()[0]
    nvml.set({f"gpu.0.error.{function}": UNKNOWN})
    hurt, other = nvml.read()
    assert hurt[field] is None
    assert [p for p in hurt["problems"] if "NVML 999" in p]
    assert not hurt["lost"]
    kept = set(whole) - {field, "health", "problems"}
    assert {name: hurt[name] for name in kept} == {name: whole[name] for name in kept}
    assert other["problems"] == []


def test_a_gpu_that_supports_nothing_is_no_problem_but_for_its_memory(nvml: Any) -> None:
    nvml.set({f"gpu.0.{name}": None for name in ("load", "temperature", "temperature_limit")})
    nvml.set({f"gpu.0.{name}": None for name in ("power_mw", "processes", "ecc_corrected")})
    nvml.set({f"gpu.0.{name}": None for name in ("ecc_uncorrected", "remapped", "xids")})
    nvml.set({f"gpu.0.{name}": None for name in ("retired_single", "retired_double")})
    nvml.set({f"gpu.0.{name}": None for name in ("retired_pending", "reasons", "pcie_replays")})
    nvml.set({"gpu.0.recovery_action": None})
    bare = nvml.read()[0]
    health = bare["health"]
    assert health.pop("query_s") > 0
    assert health.pop("xids") == []
    assert set(health.values()) == {None}
    assert bare["problems"] == []
    nvml.set({"gpu.0.used": None})
    assert nvml.read()[0]["problems"] == ["The GPU does not report its memory."]


def test_the_margin_stands_in_for_a_limit_that_is_not_told(nvml: Any) -> None:
    nvml.set({"gpu.0.temperature_limit": None, "gpu.0.temperature_margin": 30})
    assert nvml.read()[0]["health"]["temperature_limit_c"] == 85.0


def test_an_old_driver_is_read_through_its_older_functions(old_nvml: Any) -> None:
    old_nvml.set({"gpu.0.reasons": 0x40, "gpu.0.temperature_limit": None})
    gpu = old_nvml.read()[0]
    assert gpu["total_bytes"] == 1 << 30
    assert gpu["used_bytes"] == 100 << 20
    assert gpu["processes"] == [[100, 4096], [101, 8192]]
    assert gpu["health"]["thermal_slowdown"] is True
    assert gpu["health"]["temperature_limit_c"] is None
    (problem,) = gpu["problems"]
    assert "has no nvmlDeviceGetMarginTemperature" in problem


def test_memory_of_a_process_that_is_not_told_is_named(nvml: Any) -> None:
    nvml.set({"gpu.0.processes": "100:?,101:5"})
    gpu = nvml.read()[0]
    assert gpu["processes"] == [[100, 0], [101, 5]]
    assert gpu["problems"] == ["The memory of process 100 is not reported."]


def test_a_lost_gpu_leaves_the_others_alone_and_can_come_back(nvml: Any) -> None:
    configure(nvml)
    nvml.read()
    nvml.set({"gpu.0.error.nvmlDeviceGetTemperature": LOST})
    lost, other = nvml.read()
    assert (lost["uuid"], lost["lost"], lost["used_bytes"]) == ("GPU-0", True, None)
    assert lost["total_bytes"] == (1 << 30) - (24 << 20)
    assert any("no longer answers" in problem for problem in lost["problems"])
    assert not other["lost"]
    assert other["used_bytes"] == 100 << 20
    nvml.set({"gpu.0.error.nvmlDeviceGetTemperature": None})
    assert [gpu["lost"] for gpu in nvml.read()] == [False, False]


def test_a_gpu_that_loses_its_handle_stays_in_the_list(nvml: Any) -> None:
    configure(nvml)
    nvml.read()
    nvml.set({"gpu.0.error.*": LOST})
    for _ in range(3):
        lost, other = nvml.read()
        assert (lost["uuid"], lost["lost"], lost["problems"] != []) == ("GPU-0", True, True)
        assert (other["uuid"], other["lost"]) == ("GPU-1", False)
    nvml.set({"gpu.0.error.*": None})
    assert read_until(nvml, lambda gpus: not gpus[0]["lost"])[0]["used_bytes"] == 100 << 20


def test_a_gpu_that_never_told_its_uuid_is_shown_as_lost(nvml: Any) -> None:
    nvml.set({"gpu.1.error.nvmlDeviceGetHandleByIndex_v2": LOST})
    configure(nvml)
    found, unreadable = nvml.read()
    assert (found["uuid"], found["lost"]) == ("GPU-0", False)
    assert (unreadable["uuid"], unreadable["lost"]) == ("unreadable-1", True)
    assert "NVML 15" in unreadable["problems"][0]
    nvml.set({"gpu.1.error.nvmlDeviceGetHandleByIndex_v2": None})
    gpus = read_until(nvml, lambda gpus: not any(gpu["lost"] for gpu in gpus))
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-0", "GPU-1"]


def test_gpus_that_are_all_lost_are_looked_for_with_a_fresh_nvml(nvml: Any) -> None:
    configure(nvml)
    nvml.read()
    nvml.set({"gpu.0.error.*": LOST, "gpu.1.error.*": LOST})
    for _ in range(3):
        assert [(gpu["uuid"], gpu["lost"]) for gpu in nvml.read()] == [
            ("GPU-0", True),
            ("GPU-1", True),
        ]
    nvml.set({"gpu.0.error.*": None, "gpu.1.error.*": None})
    read_until(nvml, lambda gpus: not any(gpu["lost"] for gpu in gpus))


def test_a_driver_that_takes_long_to_load_anew_loses_no_gpu(nvml: Any) -> None:
    configure(nvml, {**FUTURE, "answer_s": 0.3})
    nvml.ask(do="start")
    read_until(nvml, lambda gpus: gpus[0]["used_bytes"] is not None)
    nvml.set({"gpu.0.delay_ms.nvmlDeviceGetName": 1_000})
    nvml.ask(do="shut_down_elsewhere")
    slow = read_until(nvml, lambda gpus: "not answered" in "".join(gpus[0]["problems"]))
    assert [gpu["lost"] for gpu in slow] == [False, False]
    nvml.set({"gpu.0.delay_ms.nvmlDeviceGetName": None})
    assert not any(gpu["lost"] for gpu in read_until(nvml, lambda gpus: not gpus[0]["problems"]))


def test_the_driver_goes_away_and_comes_back(nvml: Any) -> None:
    configure(nvml)
    nvml.read()
    nvml.set({"error.*": NOT_LOADED})
    gone = nvml.read()
    assert [(gpu["uuid"], gpu["lost"]) for gpu in gone] == [("GPU-0", True), ("GPU-1", True)]
    assert all("driver does not answer" in gpu["problems"][0] for gpu in gone)
    nvml.set({"error.*": None})
    back = nvml.read()
    assert [gpu["lost"] for gpu in back] == [False, False]
    assert back[0]["used_bytes"] == 100 << 20
    assert back[0]["problems"] == []


def test_the_driver_is_not_asked_again_before_its_time(nvml: Any) -> None:
    configure(nvml, FUTURE)
    nvml.read()
    nvml.set({"error.*": NOT_LOADED})
    assert all(gpu["lost"] for gpu in nvml.read())
    nvml.set({"error.*": None})
    assert all(gpu["lost"] for gpu in nvml.read())


def test_nvml_shut_down_by_somebody_else_is_loaded_again_at_once(nvml: Any) -> None:
    configure(nvml, FUTURE)
    nvml.read()
    nvml.ask(do="shut_down_elsewhere")
    assert [gpu["lost"] for gpu in nvml.read()] == [False, False]


def test_many_returns_of_the_driver_leak_no_event_sets(nvml: Any) -> None:
    configure(nvml)
    for _ in range(20):
        nvml.read()
        nvml.set({"gpu.1.error.nvmlDeviceGetTemperature": LOST})
        nvml.read()
        nvml.set({"gpu.1.error.nvmlDeviceGetTemperature": None})
    nvml.set({"gpu.0.xids": "31"})
    gpu = nvml.read()[0]
    assert gpu["problems"] == []
    assert [xid["code"] for xid in gpu["health"]["xids"]] == [31]


def test_no_driver_at_all_is_an_empty_list_and_an_error_that_helps(nvml: Any) -> None:
    nvml.set({"error.nvmlInitWithFlags": NOT_LOADED})
    assert nvml.read() == []
    refused = nvml.ask(do="start")
    assert refused["error"] == "device"
    assert "Driver Not Loaded" in refused["message"]
    assert "Install the NVIDIA driver" in refused["message"]


def test_xid_events_are_kept_with_their_time(nvml: Any) -> None:
    nvml.read()
    nvml.set({"gpu.0.xids": "31,95"})
    hurt, other = nvml.read()
    xids = hurt["health"]["xids"]
    assert [xid["code"] for xid in xids] == [31, 95]
    assert hurt["health"]["ecc_uncontained"] == 1
    assert other["health"]["xids"] == []
    nvml.set({"gpu.0.xids": "31,95,79", "gpu.0.error.nvmlDeviceGetMemoryInfo_v2": LOST})
    lost = nvml.read()[0]
    assert lost["lost"]
    assert lost["health"]["xids"][:2] == xids
    assert lost["health"]["xids"][2]["code"] == 79


def test_events_that_cannot_be_watched_are_named_until_they_can(nvml: Any) -> None:
    nvml.set({"gpu.0.error.nvmlDeviceRegisterEvents": UNKNOWN, "gpu.0.xids": "79"})
    for _ in range(20):
        health, problems = (nvml.read()[0][key] for key in ("health", "problems"))
        assert health["ecc_uncontained"] is None
        assert ["nvmlDeviceRegisterEvents" in problem for problem in problems] == [True]
    nvml.set({"gpu.0.error.nvmlDeviceRegisterEvents": None})
    gpu = nvml.read()[0]
    assert [xid["code"] for xid in gpu["health"]["xids"]] == [79]
    assert gpu["problems"] == []


def test_xids_outlive_the_driver(nvml: Any) -> None:
    configure(nvml)
    nvml.set({"gpu.0.xids": "48"})
    nvml.read()
    nvml.set({"error.*": NOT_LOADED})
    nvml.read()
    nvml.set({"error.*": None})
    assert [xid["code"] for xid in nvml.read()[0]["health"]["xids"]] == [48]


def test_memory_faults_are_reported(nvml: Any) -> None:
    nvml.set({"gpu.0.ecc_uncorrected": 7, "gpu.0.remapped": "2,3,1,1", "gpu.0.reasons": 0x80})
    nvml.set({"gpu.0.recovery_action": 4, "gpu.1.retired_double": 2, "gpu.1.remapped": None})
    nvml.set({"gpu.1.retired_pending": 1, "gpu.1.recovery_action": 99})
    first, second = (gpu["health"] for gpu in nvml.read())
    assert (first["ecc_corrected"], first["ecc_uncorrected"]) == (3, 7)
    assert (first["remapped_rows"], first["remap_pending"], first["remap_failed"]) == (
        5,
        True,
        True,
    )
    assert (first["power_brake"], first["thermal_slowdown"]) == (True, False)
    assert first["recovery_action"] == "drain_and_reset"
    assert (second["retired_pages"], second["remap_pending"]) == (2, True)
    assert (second["remapped_rows"], second["remap_failed"]) == (None, None)
    assert second["recovery_action"] == "action 99"


def test_a_gpu_that_hangs_keeps_nobody_waiting(nvml: Any) -> None:
    configure(nvml, {**EAGER, "answer_s": 0.5, "lost_s": 3600.0})
    nvml.ask(do="start")
    nvml.read()
    nvml.set({"gpu.0.delay_ms.nvmlDeviceGetPowerUsage": 600_000, "gpu.1.used": 5})
    slow, other = read_until(nvml, lambda gpus: gpus[1]["used_bytes"] == 5)
    assert not slow["lost"]
    assert slow["used_bytes"] == 100 << 20
    assert slow["health"]["query_s"] >= 0.5
    assert "has not answered" in slow["problems"][0]
    assert other["problems"] == []


def test_a_gpu_that_hangs_for_long_is_lost(nvml: Any) -> None:
    configure(nvml, {**EAGER, "answer_s": 0.2, "lost_s": 0.5})
    nvml.ask(do="start")
    nvml.set({"gpu.0.delay_ms.nvmlDeviceGetPowerUsage": 600_000})
    read_until(nvml, lambda gpus: gpus[0]["lost"])
    # Looking for the lost GPU again must not make the other one lost as well.
    slow, _ = read_until(nvml, lambda gpus: not gpus[1]["lost"])
    assert slow["lost"]
    assert "has not answered" in slow["problems"][0]


def test_bindings(nvml: Any) -> None:
    nvml.read()
    assert nvml.ask(do="environment", uuid="GPU-1") == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    unknown = nvml.ask(do="environment", uuid="GPU-9")
    assert unknown["error"] == "not_found"
    assert "'GPU-9'" in unknown["message"]
    assert "GPU-0, GPU-1" in unknown["message"]
    refused = nvml.ask(do="script_health", uuid="GPU-1")
    assert refused["error"] == "conflict"


def test_hidden_gpus_are_left_alone(nvml: Any) -> None:
    configure(nvml, CUDA_VISIBLE_DEVICES="1")
    assert [gpu["uuid"] for gpu in nvml.read()] == ["GPU-1"]


def test_a_closed_backend_can_be_read_again(nvml: Any) -> None:
    nvml.read()
    nvml.ask(do="close")
    assert [gpu["lost"] for gpu in nvml.read()] == [False, False]
