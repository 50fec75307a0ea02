"""Suspending and resuming real processes through the real helper; the driver is a stub in C."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpu_predict.devices.cuda_checkpoint import Traits
from jupyter_gpu_predict.devices.cuda_checkpoint_steps import ProcessState
from jupyter_gpu_predict.errors import (
    CheckpointFailedError,
    CheckpointRefusedError,
)

MIB = 1 << 20
needs_core = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None, reason="cuda.core is not installed (extra checkpoint)"
)
WAYS = [pytest.param("cuda.core", marks=needs_core), "libcuda"]


def suspend(stage: Any, pid: int, **options: Any) -> Any:
    server = options.pop("server", None) or stage.server()
    return asyncio.run(server.suspend("k", pid, **options))


def refused(stage: Any, pid: int, **options: Any) -> CheckpointRefusedError:
    with pytest.raises(CheckpointRefusedError) as caught:
        suspend(stage, pid, **options)
    return caught.value


@pytest.mark.parametrize("way", WAYS)
def test_memory_goes_and_comes_back_on_the_same_gpu(stage: Any, way: str) -> None:
    pid = stage.stub.start(300 * MIB)
    server = stage.server(way=way)
    assert way.split(".")[0] in asyncio.run(server.assess("k", pid)).way
    out = suspend(stage, pid, server=server)
    assert (out.bytes, out.left_bytes, stage.stub.used()) == (300 * MIB, 0, 0)
    assert stage.stub.get(pid) == "checkpointed"
    assert stage.record().suspended
    assert set(out.seconds) == {"lock", "checkpoint"}
    back = asyncio.run(server.resume("k"))
    assert (back.bytes, stage.stub.used(), stage.stub.get(pid)) == (300 * MIB, 300 * MIB, "running")
    assert not stage.record().may_hold
    assert [c for c, _, _ in stage.stub.calls()] == ["lock", "checkpoint", "restore", "unlock"]


@pytest.mark.parametrize("way", WAYS)
def test_it_moves_to_another_gpu_by_a_map_of_all(stage: Any, stub_cuda: Any, way: str) -> None:
    first, second = stub_cuda.UUIDS[:2]
    pid, server = stage.stub.start(100 * MIB, gpu=0), stage.server(way=way)
    suspend(stage, pid, server=server, to_other_gpu=True)
    asyncio.run(server.resume("k", gpu_map={first: second}))
    assert (stage.stub.on(0), stage.stub.on(1), stage.stub.get(pid)) == ([], [pid], "running")


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_that_times_out_undoes_itself_and_says_so(stage: Any, way: str) -> None:
    first, second = stage.stub.start(), stage.stub.start()
    server = stage.server(way=way)
    stage.stub.script(first, busy_ms=5000)
    error = refused(stage, first, server=server, lock_timeout_s=1.0)
    assert (error.why, error.fallback) == ("lock_timeout", "in_place")
    assert "goes on" in str(error)
    assert stage.stub.get(first) == "running"
    assert not stage.record().may_hold
    # A busy GPU is no reason for the next time.
    assert suspend(stage, first, server=server, lock_timeout_s=10.0).bytes == 100 * MIB
    assert stage.stub.get(second) == "running"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("call", ["lock", "checkpoint", "state"])
def test_not_supported_only_sometimes_is_got_over(stage: Any, way: str, call: str) -> None:
    pid = stage.stub.start()
    stage.stub.script(pid, **{f"error__{call}": 801, f"error_times__{call}": 2})
    out = suspend(stage, pid, server=stage.server(way=way))
    assert out.flaky == (() if call == "state" else ("not_supported",))
    assert stage.stub.get(pid) == "checkpointed"
    assert out.record.failures == ()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_never_supported_is_remembered_for_this_driver(stage: Any, way: str) -> None:
    pid, server = stage.stub.start(), stage.server(way=way)
    stage.stub.script(pid, error__checkpoint=801)
    for _ in range(2):
        assert refused(stage, pid, server=server).why == "not_supported"
        assert stage.stub.get(pid) == "running"
    calls = len(stage.stub.calls())
    error = refused(stage, pid, server=stage.server(way=way))
    assert (error.why, error.fallback) == ("failed_before", "in_place")
    assert refused(stage, pid, to_other_gpu=True).fallback == "relaunch"
    assert len(stage.stub.calls()) == calls
    stage.stub.script(pid, error__checkpoint=None)
    stage.stub.set_nvml({"driver": "610.1"})
    assert suspend(stage, pid, server=stage.server(way=way)).bytes


def test_the_whole_tree_is_locked_before_the_first_is_checkpointed(stage: Any) -> None:
    """The root is this test's process: the others are its children."""
    one, two = stage.stub.start(100 * MIB), stage.stub.start(50 * MIB, gpu=1)
    stage.stub.start(cuda=False)
    out = suspend(stage, os.getpid())
    assert out.bytes == 150 * MIB
    assert {p.pid for p in out.record.processes} == {one, two}
    assert [c for c, _, _ in stage.stub.calls()] == ["lock", "lock", "checkpoint", "checkpoint"]
    asyncio.run(stage.server().resume("k"))
    assert [c for c, _, _ in stage.stub.calls()][4:] == ["restore", "restore", "unlock", "unlock"]
    assert (stage.stub.used(0), stage.stub.used(1)) == (100 * MIB, 50 * MIB)


def test_one_that_cannot_be_checkpointed_brings_the_others_back(stage: Any) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    stage.stub.script(two, error__checkpoint=304)
    assert refused(stage, os.getpid()).why == "operating_system"
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")
    assert stage.stub.used() == 200 * MIB


def test_a_failed_restore_leaves_the_whole_tree_suspended(stage: Any) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    server = stage.server()
    suspend(stage, os.getpid(), server=server)
    stage.stub.script(two, error__restore=304)
    with pytest.raises(CheckpointFailedError, match="wholly suspended") as caught:
        asyncio.run(server.resume("k"))
    assert caught.value.held
    assert (stage.stub.get(one), stage.stub.get(two)) == ("checkpointed", "checkpointed")
    assert stage.record().suspended
    stage.stub.script(two, error__restore=None)
    asyncio.run(stage.server().resume("k"))
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")


def test_a_restore_without_room_is_not_begun(stage: Any) -> None:
    """Drivers may never restore a process again whose restore ran out of memory."""
    pid = stage.stub.start(800 * MIB)
    stage.stub.set({"stuck_after_oom": 1})
    suspend(stage, pid)
    other = stage.stub.start(500 * MIB)
    with pytest.raises(CheckpointRefusedError, match="524 MiB free") as caught:
        asyncio.run(stage.server().resume("k"))
    assert caught.value.why == "device_memory"
    assert stage.record().suspended
    assert "restore" not in {c for c, _, _ in stage.stub.calls()}
    stage.stub.kill(other)
    stage.stub.set_nvml({"gpu.0.used": 0, "gpu.0.processes": ""})
    asyncio.run(stage.server().resume("k"))
    assert stage.stub.get(pid) == "running"


def test_a_gpu_lost_while_memory_is_out_comes_back_on_another(stage: Any, stub_cuda: Any) -> None:
    first, second = stub_cuda.UUIDS[:2]
    pid = stage.stub.start(gpu=1)
    suspend(stage, pid)
    stage.stub.set_nvml({"count": 1})
    with pytest.raises(CheckpointRefusedError, match="not there") as caught:
        asyncio.run(stage.server().resume("k"))
    assert caught.value.why == "gpu_lost"
    asyncio.run(stage.server().resume("k", gpu_map={second: first}))
    assert (stage.stub.get(pid), stage.stub.on(0)) == ("running", [pid])


def test_maps_that_cannot_be_are_refused_by_name(stage: Any, stub_cuda: Any) -> None:
    first, second = stub_cuda.UUIDS[:2]
    pid = stage.stub.start()
    suspend(stage, pid)
    for gpu_map, name, why in [
        ({first: "GPU-none"}, None, "gpu_map"),
        ({"GPU-none": first}, None, "gpu_map"),
        ({first: second}, "Stub H100", "chip"),
    ]:
        if name:
            stage.stub.set_nvml({"gpu.1.name": name})
        with pytest.raises(CheckpointRefusedError) as caught:
            asyncio.run(stage.server().resume("k", gpu_map=gpu_map))
        assert caught.value.why == why
        assert stage.record().suspended


def test_processes_that_end_while_suspended_are_let_go_of(stage: Any) -> None:
    pid = stage.stub.start()
    suspend(stage, pid)
    stage.stub.kill(pid)
    with pytest.raises(CheckpointFailedError, match="ended") as caught:
        asyncio.run(stage.server().resume("k"))
    assert not caught.value.held
    assert not stage.record().may_hold


def test_a_kernel_of_somebody_else_on_the_gpu_does_not_matter(stage: Any) -> None:
    mine, other = stage.stub.start(100 * MIB), stage.stub.start(700 * MIB)
    suspend(stage, mine)
    assert (stage.stub.on(0), stage.stub.get(other)) == ([other], "running")


def test_asking_changes_nothing(stage: Any) -> None:
    pid, server = stage.stub.start(), stage.server()
    found = asyncio.run(server.assess("k", pid))
    assert (found.refusal, found.bytes, found.driver_version) == (None, 100 * MIB, "580.95.05")
    assert asyncio.run(server.state("k", pid)) == {pid: ProcessState.RUNNING}
    assert (stage.stub.calls(), stage.times_kept) == ([], 0)


@pytest.mark.parametrize(
    ("nvml", "driver", "traits", "why"),
    [
        ({"gpu.0.mig": 1}, {}, None, "mig"),
        ({"driver": "570.158.01"}, {}, None, "driver_version"),
        ({}, {"cuda": 12040}, None, "driver_version"),
        ({}, {}, Traits(managed_memory=True), "managed_memory"),
        ({}, {}, Traits(ipc=True), "ipc"),
    ],
)
def test_the_gate_refuses_by_name_before_anything_is_done(
    stage: Any, nvml: dict[str, Any], driver: dict[str, Any], traits: Traits | None, why: str
) -> None:
    pid = stage.stub.start()
    stage.stub.set_nvml(nvml)
    stage.stub.set(driver)
    error = refused(stage, pid, traits=traits)
    assert (error.why, error.fallback) == (why, "in_place")
    assert stage.stub.calls() == []


def test_the_gate_sees_mps_and_host_memory_and_held_processes(stage: Any) -> None:
    pid, huge, held = stage.stub.start(), stage.stub.start(1 << 50), stage.stub.start()
    plain = stage.stub.start(cuda=False)
    stage.stub.set_nvml({"gpu.0.mps": pid})
    stage.stub.script(held, state="locked")
    whys = [refused(stage, p).why for p in (pid, huge, held, plain)]
    assert whys == ["mps", "host_memory", "state", "no_cuda"]
    assert stage.stub.calls() == []


def test_a_driver_without_the_calls_is_named(
    stub_cuda: Any, make_stage: Any, old_libraries: Path, tmp_path: Path
) -> None:
    stub = stub_cuda.StubCuda(old_libraries, tmp_path)
    try:
        assert refused(make_stage(stub), stub.start()).why == "driver_version"
    finally:
        stub.close()


def test_old_bindings_are_named_and_the_library_serves_instead(stage: Any, tmp_path: Path) -> None:
    """The bindings are a hollow package that only says its version."""
    pid = stage.stub.start()
    for name, text in {
        "cuda/bindings/__init__.py": "__version__ = '12.6.0'",
        "cuda/bindings/driver.py": "",
        "cuda/core/__init__.py": "__version__ = '0.1'; from . import checkpoint",
        "cuda/core/checkpoint.py": "Process = None",
        "cuda/__init__.py": "",
    }.items():
        path = tmp_path / "hollow" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    environ = {**stage.stub.environ, "PYTHONPATH": str(tmp_path / "hollow")}
    error = refused(stage, pid, server=stage.server(way="cuda.core", environ=environ))
    assert error.why == "bindings_version"
    assert "12.6.0" in str(error)
    assert suspend(stage, pid, server=stage.server(way="auto", environ=environ)).bytes


def test_operations_on_a_kernel_wait_for_each_other_and_outlive_their_caller(stage: Any) -> None:
    pid = stage.stub.start()
    stage.stub.script(pid, delay_ms__checkpoint=300)

    async def scene() -> None:
        server = stage.server()
        first = asyncio.ensure_future(server.suspend("k", pid))
        while ("begin", pid, 0) not in stage.stub.calls():
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        await server.resume("k")
        await server.close()

    asyncio.run(scene())
    calls = [c for c, _, _ in stage.stub.calls() if c != "begin"]
    assert calls == ["lock", "checkpoint", "restore", "unlock"]
    assert not stage.record().may_hold


def test_a_kernel_that_ended_in_the_middle_keeps_nothing_any_more(stage: Any) -> None:
    pid = stage.stub.start()
    stage.stub.script(pid, delay_ms__checkpoint=300)

    async def scene() -> None:
        server = stage.server()
        first = asyncio.ensure_future(server.suspend("k", pid))
        while ("begin", pid, 0) not in stage.stub.calls():
            await asyncio.sleep(0.01)
        server.forget("k")
        kept = stage.times_kept
        await first
        assert stage.times_kept == kept
        assert not server.record("k").may_hold

    asyncio.run(scene())
