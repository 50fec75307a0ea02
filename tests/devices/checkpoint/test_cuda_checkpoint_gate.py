"""The gate as a pure function; what it sees through real NVML is in test_cuda_checkpoint.py."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpu_predict.devices import cuda_checkpoint_facts as facts
from jupyter_gpu_predict.devices.cuda_checkpoint_facts import (
    GpuFacts,
    Look,
    ProcessFacts,
    look_from_json,
)
from jupyter_gpu_predict.devices.cuda_checkpoint_gate import (
    Refusal,
    Traits,
    full_map,
    refuse_resume,
    refuse_suspend,
)
from jupyter_gpu_predict.devices.cuda_checkpoint_record import (
    CheckpointRecord,
    Failure,
    HeldProcess,
)
from jupyter_gpu_predict.devices.cuda_checkpoint_steps import Goal, ProcessState

GIB = 1 << 30
RECORD = CheckpointRecord("k")
PROCESS = ProcessFacts(7, 70, 1000, ProcessState.RUNNING)
GPU = GpuFacts("GPU-a", "H200", 50 * GIB, mig=False, processes=((7, 10 * GIB), (9, GIB)))
LOOK = Look("580.1", "libcuda", "", None, (GPU,), (PROCESS,), 20 * GIB, 1000, may_trace=False)


def why(look: Look, record: CheckpointRecord = RECORD, **options: object) -> str | None:
    refusal = refuse_suspend(look, record, Traits(), **options)  # type: ignore[arg-type]
    return None if refusal is None else refusal.why


def test_a_kernel_that_may() -> None:
    assert why(LOOK) is None
    assert look_from_json(json.loads(json.dumps(asdict(LOOK)))) == LOOK


def test_host_memory_has_to_hold_the_device_memory_and_a_margin() -> None:
    assert why(replace(LOOK, host_bytes=11 * GIB)) is None
    assert why(replace(LOOK, host_bytes=11 * GIB - 1)) == "host_memory"
    assert why(replace(LOOK, host_bytes=None)) is None
    unknown = replace(GPU, processes=((7, None),))
    assert why(replace(LOOK, gpus=(unknown,))) == "device_memory_unknown"


def test_ownership_is_the_same_user_or_a_permission() -> None:
    stranger = replace(LOOK, uid=1001)
    assert why(stranger) == "ownership"
    assert why(replace(stranger, may_trace=True)) is None


@pytest.mark.parametrize("state", [s for s in ProcessState if s is not ProcessState.RUNNING])
def test_a_process_in_another_state_than_running_is_named(state: ProcessState) -> None:
    if state is ProcessState.GONE:
        return
    assert why(replace(LOOK, processes=(replace(PROCESS, state=state),))) == "state"


def test_mps_and_mig_count_only_where_the_kernel_is() -> None:
    other = replace(GPU, uuid="GPU-b", mig=True, processes=((9, GIB),), mps_pids=(9,))
    assert why(replace(LOOK, gpus=(GPU, other))) is None
    assert why(replace(LOOK, gpus=(replace(GPU, mig=None),))) is None


def test_a_move_needs_a_newer_driver_and_falls_back_to_a_relaunch() -> None:
    older = replace(LOOK, driver_version="575.57")
    assert why(older) is None
    refusal = refuse_suspend(older, RECORD, Traits(), to_other_gpu=True)
    assert refusal is not None
    assert (refusal.why, refusal.fallback.value) == ("driver_version", "relaunch")


def test_failures_count_in_a_row_and_for_their_driver_only() -> None:
    record = RECORD.with_failure("580.1", "suspend", "lock_timeout")
    assert record.failures == ()
    record = record.with_failure("580.1", "suspend", "not_supported")
    assert why(LOOK, record) is None
    record = record.with_failure("580.1", "suspend", "not_supported")
    assert why(LOOK, record) == "failed_before"
    assert why(replace(LOOK, driver_version="580.2"), record) is None
    assert why(LOOK, record.with_success("580.1", "suspend")) is None
    moved = RECORD.with_failure("580.1", "move", "invalid_argument")
    moved = moved.with_failure("580.1", "move", "invalid_argument")
    assert why(LOOK, moved) is None
    assert why(LOOK, moved, to_other_gpu=True) == "failed_before"


UUIDS = [f"GPU-{i}" for i in range(5)]


@given(st.permutations(UUIDS), st.lists(st.sampled_from(UUIDS), unique=True, max_size=5))
def test_a_full_map_names_every_gpu_once_and_keeps_to_the_moves(
    targets: list[str], sources: list[str]
) -> None:
    look = replace(LOOK, gpus=tuple(replace(GPU, uuid=uuid) for uuid in UUIDS))
    moves = dict(zip(sources, targets, strict=False))
    whole = full_map(moves, look, RECORD)
    assert not isinstance(whole, Refusal)
    assert sorted(whole) == sorted(whole.values()) == UUIDS
    assert moves.items() <= whole.items()


def test_two_gpus_do_not_become_one() -> None:
    look = replace(LOOK, gpus=tuple(replace(GPU, uuid=uuid) for uuid in UUIDS))
    refusal = full_map({"GPU-0": "GPU-2", "GPU-1": "GPU-2"}, look, RECORD)
    assert isinstance(refusal, Refusal)


def test_room_is_counted_where_the_memory_goes() -> None:
    out = (
        HeldProcess(7, 70, ProcessState.CHECKPOINTED, {"GPU-a": 30 * GIB}),
        HeldProcess(8, 80, ProcessState.CHECKPOINTED, {"GPU-b": 30 * GIB}),
    )
    record = replace(RECORD, processes=out)
    look = replace(LOOK, gpus=(GPU, replace(GPU, uuid="GPU-b")))
    assert refuse_resume(look, record, None) is None
    assert refuse_resume(look, record, {"GPU-a": "GPU-b", "GPU-b": "GPU-a"}) is None
    refusal = refuse_resume(look, record, {"GPU-a": "GPU-b"})
    assert refusal is not None
    assert refusal.why == "device_memory"


STATES = st.sampled_from(ProcessState)


@given(
    st.builds(
        CheckpointRecord,
        kernel_id=st.text(),
        goal=st.sampled_from(Goal),
        settled=st.booleans(),
        processes=st.lists(
            st.builds(
                HeldProcess,
                st.integers(1),
                st.integers(0),
                STATES,
                st.dictionaries(st.text(), st.integers(0)),
            ),
            max_size=3,
        ).map(tuple),
        failures=st.lists(
            st.builds(Failure, st.text(), st.text(), st.text(), st.integers(1)), max_size=3
        ).map(tuple),
    )
)
def test_a_record_comes_back_from_text(record: CheckpointRecord) -> None:
    assert CheckpointRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_tightest_memory_limit_above_a_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    (proc / "7" / "cgroup").write_text("0::/user/kernel\n")
    (mount / "user" / "kernel").mkdir(parents=True)
    (mount / "user" / "memory.max").write_text("1000\n")
    (mount / "user" / "memory.current").write_text("400\n")
    (mount / "user" / "kernel" / "memory.max").write_text("max\n")
    monkeypatch.setattr(facts, "PROC", proc)
    assert facts._cgroup_room(7, mount) == 600
    assert facts._cgroup_room(8, mount) is None


def test_the_tree_and_the_start_of_real_processes() -> None:
    mine = os.getpid()
    assert facts.tree(os.getppid())[0] == os.getppid()
    assert mine in facts.tree(os.getppid())
    assert facts.start_ticks(mine) == facts.start_ticks(mine)
    assert facts.start_ticks(2**22 + 1) is None
    assert (facts.host_bytes(mine) or 0) > 0
