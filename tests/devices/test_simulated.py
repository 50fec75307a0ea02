from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gpu_predict.control.ports import DeviceBackend
from jupyter_gpu_predict.core.model import MIB, RiskLevel, XidEvent
from jupyter_gpu_predict.core.risk import assess
from jupyter_gpu_predict.devices.simulated import SimulatedGpus
from jupyter_gpu_predict.errors import BadInputError, DeviceError, NotFoundError


def test_gpus_are_what_was_asked_for() -> None:
    backend: DeviceBackend = SimulatedGpus(3, 64 * MIB)
    gpus = backend.read()
    assert [gpu.uuid for gpu in gpus] == ["SIM-GPU-0", "SIM-GPU-1", "SIM-GPU-2"]
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert {(gpu.name, gpu.total_bytes, gpu.simulated) for gpu in gpus} == {
        ("Simulated GPU", 64 * MIB, True)
    }
    assert all(assess(gpu.uuid, gpu, None, 0.0).level is RiskLevel.NONE for gpu in gpus)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2", 10_000, None])
def test_a_malformed_number_of_gpus_is_refused(count: Any) -> None:
    with pytest.raises(BadInputError, match="number of simulated GPUs"):
        SimulatedGpus(count)


@pytest.mark.parametrize("size", [0, -1, math.nan, 1 << 63, None])
def test_a_malformed_size_is_refused(size: Any) -> None:
    with pytest.raises(BadInputError, match="memory of a simulated GPU"):
        SimulatedGpus(1, size)


def test_memory_is_what_kernels_report() -> None:
    gpus = SimulatedGpus(2)
    gpus.account({"SIM-GPU-1": {42: 5, 7: 3}})
    first, second = gpus.read()
    assert (first.used_bytes, first.processes) == (0, ())
    assert (second.used_bytes, second.processes) == (8, ((7, 3), (42, 5)))
    gpus.account({"SIM-GPU-0": {42: 5}})
    assert [gpu.used_bytes for gpu in gpus.read()] == [5, 0]


@pytest.mark.parametrize("size", [-1, math.nan, 1.0, True, None])
def test_malformed_memory_changes_nothing(size: Any) -> None:
    gpus = SimulatedGpus(2)
    gpus.account({"SIM-GPU-0": {1: 10}})
    with pytest.raises(BadInputError, match="SIM-GPU-1"):
        gpus.account({"SIM-GPU-0": {1: 20}, "SIM-GPU-1": {2: size}})
    assert gpus.read()[0].used_bytes == 10


def test_memory_on_a_gpu_that_there_is_not_is_named() -> None:
    gpus = SimulatedGpus(1)
    gpus.account({"SIM-GPU-0": {1: 10}, "SIM-GPU-7": {2: MIB}})
    (gpu,) = gpus.read()
    assert gpu.used_bytes == 10
    assert "1 MiB" in gpu.problems[0]
    assert "'SIM-GPU-7'" in gpu.problems[0]
    gpus.account({})
    assert gpus.read()[0].problems == ()


def test_scripted_health_is_read_and_moves_the_risk() -> None:
    gpus = SimulatedGpus(2, clock=lambda: 77.0)
    health = gpus.script_health(
        "SIM-GPU-1", ecc_uncontained=1, temperature_c=91, temperature_limit_c=90.0, xid=95
    )
    sound, hurt = gpus.read()
    assert hurt.health == health
    assert (health.ecc_uncontained, health.xids) == (1, (XidEvent(95, 77.0),))
    assert hurt.temperature_c == 91.0
    assert assess("SIM-GPU-1", hurt, None, 77.0).level is RiskLevel.CRITICAL
    assert assess("SIM-GPU-0", sound, None, 77.0).level is RiskLevel.NONE


def test_xids_are_appended_and_can_be_cleared() -> None:
    gpus = SimulatedGpus(1, clock=lambda: 5.0)
    gpus.script_health("SIM-GPU-0", xid=31)
    gpus.script_health("SIM-GPU-0", xid=79)
    assert [event.code for event in gpus.read()[0].health.xids] == [31, 79]
    health = gpus.script_health("SIM-GPU-0", xids=[{"code": 48, "t_s": 1}], xid=13)
    assert health.xids == (XidEvent(48, 1.0), XidEvent(13, 5.0))
    assert gpus.script_health("SIM-GPU-0", xids=[]).xids == ()


def test_a_lost_gpu_says_nothing_until_it_is_back() -> None:
    gpus = SimulatedGpus(1)
    gpus.account({"SIM-GPU-0": {1: 10}})
    gpus.script_health("SIM-GPU-0", lost=True)
    (lost,) = gpus.read()
    assert (lost.lost, lost.used_bytes, lost.processes) == (True, None, ())
    assert lost.problems
    gpus.script_health("SIM-GPU-0", lost=False)
    (back,) = gpus.read()
    assert (back.lost, back.used_bytes, back.problems) == (False, 10, ())


@pytest.mark.parametrize(
    "changes",
    [
        {"ecc": 1},
        {"ecc_uncorrected": -1},
        {"ecc_uncorrected": 1.0},
        {"ecc_uncorrected": True},
        {"ecc_uncorrected": 1 << 80},
        {"ecc_uncorrected": "3"},
        {"temperature_c": math.nan},
        {"temperature_c": math.inf},
        {"temperature_c": 10**400},
        {"temperature_c": -1.0},
        {"temperature_c": True},
        {"query_s": "1"},
        {"remap_failed": 1},
        {"lost": None},
        {"lost": "yes"},
        {"xid": None},
        {"xid": -79},
        {"xid": 79.0},
        {"xids": 79},
        {"xids": None},
        {"xids": [79]},
        {"xids": [{"code": 79}]},
        {"xids": [{"code": 79, "t_s": math.nan}]},
        {"xids": [{"code": 79, "t_s": 1.0, "more": 1}]},
        {"recovery_action": "explode"},
        {"recovery_action": 1},
    ],
)
def test_malformed_health_changes_nothing(changes: dict[str, Any]) -> None:
    gpus = SimulatedGpus(1)
    gpus.script_health("SIM-GPU-0", ecc_corrected=4)
    before = gpus.read()
    (name,) = changes
    with pytest.raises(BadInputError, match=f"'{name}'" if name != "xids" else "xids|code|t_s"):
        gpus.script_health("SIM-GPU-0", ecc_uncontained=1, **changes)
    assert gpus.read() == before


def test_a_value_can_be_left_unsaid() -> None:
    gpus = SimulatedGpus(1)
    assert gpus.script_health("SIM-GPU-0", ecc_uncorrected=None).ecc_uncorrected is None


def test_an_unknown_gpu_is_named_with_those_there_are() -> None:
    gpus = SimulatedGpus(2)
    with pytest.raises(NotFoundError, match=r"'GPU-x'.*SIM-GPU-0, SIM-GPU-1"):
        gpus.script_health("GPU-x", lost=True)
    with pytest.raises(NotFoundError, match="GPU-x"):
        gpus.environment("GPU-x")


def test_a_kernel_is_told_its_gpu_and_nothing_else() -> None:
    gpus = SimulatedGpus(2)
    assert gpus.environment("SIM-GPU-1") == {"JUPYTER_GPU_PREDICT_GPU": "SIM-GPU-1"}


def test_health_survives_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "health.json"
    gpus = SimulatedGpus(2, persist=path, clock=lambda: 9.0)
    gpus.script_health("SIM-GPU-1", lost=True, xid=79, ecc_uncorrected=None, temperature_c=20)
    again = SimulatedGpus(2, persist=path)
    assert again.read() == gpus.read()
    assert again.read()[1].lost
    fewer = SimulatedGpus(1, persist=path)
    assert not fewer.read()[0].lost
    assert [entry.name for entry in tmp_path.iterdir()] == ["health.json"]


@pytest.mark.parametrize(
    "text", ["", "[1", "[]", '{"SIM-GPU-0": 3}', '{"SIM-GPU-0": {"ecc": 1}}', "\ud800"]
)
def test_a_damaged_file_is_named_and_left(tmp_path: Path, text: str) -> None:
    path = tmp_path / "health.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DeviceError, match=r"health\.json cannot be read"):
        SimulatedGpus(1, persist=path)
    assert path.exists()


def test_health_that_cannot_be_kept_is_not_changed(tmp_path: Path) -> None:
    gpus = SimulatedGpus(1, persist=tmp_path / "no" / "health.json")
    with pytest.raises(DeviceError, match="could not be kept"):
        gpus.script_health("SIM-GPU-0", lost=True)
    assert not gpus.read()[0].lost


def test_threads_lose_no_change() -> None:
    gpus = SimulatedGpus(1)

    def work(pid: int) -> None:
        for _ in range(20):
            gpus.script_health("SIM-GPU-0", xid=pid)
            gpus.account({"SIM-GPU-0": {pid: pid}})
            assert len(gpus.read()[0].processes) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert len(gpus.read()[0].health.xids) == 8 * 20


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["SIM-GPU-0", "SIM-GPU-1"]),
        st.dictionaries(st.integers(0, 99), st.integers(0, 1 << 40), max_size=4),
    )
)
def test_used_memory_is_the_sum_of_the_processes(memory: dict[str, dict[int, int]]) -> None:
    gpus = SimulatedGpus(2)
    gpus.account(memory)
    for gpu in gpus.read():
        assert gpu.used_bytes == sum(memory.get(gpu.uuid, {}).values())
        assert dict(gpu.processes) == memory.get(gpu.uuid, {})


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=12), st.none() | st.integers() | st.floats() | st.text()))
def test_any_change_is_made_whole_or_refused(changes: dict[str, Any]) -> None:
    gpus = SimulatedGpus(1)
    before = gpus.read()
    try:
        health = gpus.script_health("SIM-GPU-0", **changes)
    except BadInputError:
        assert gpus.read() == before
    else:
        assert json.dumps([event.code for event in health.xids])
