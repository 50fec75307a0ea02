"""Helpers that die, hang or lose their server at every point, with the stub of the driver."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from jupyter_gpu_predict.devices.cuda_checkpoint import CudaCheckpoint, Limits
from jupyter_gpu_predict.devices.cuda_checkpoint_facts import start_ticks
from jupyter_gpu_predict.devices.cuda_checkpoint_talk import MODULE
from jupyter_gpu_predict.errors import CheckpointFailedError, CheckpointRefusedError

MIB = 1 << 20
ERRORS = (CheckpointFailedError, CheckpointRefusedError)
HELD = ("locked", "checkpointed")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["lock", "checkpoint", "state"])
def test_a_helper_that_dies_while_suspending_is_undone_at_once(
    stage: Any, call: str, when: str
) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    stage.stub.script(two, **{f"die__{call}": when})
    with pytest.raises(CheckpointRefusedError, match="goes on") as caught:
        asyncio.run(stage.server().suspend("k", os.getpid()))
    assert caught.value.why == "died"
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")
    assert stage.stub.used() == 200 * MIB
    assert not stage.record().may_hold


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("call", ["restore", "unlock"])
def test_a_helper_that_dies_while_resuming_is_followed_by_another(
    stage: Any, call: str, when: str
) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    server = stage.server()
    asyncio.run(server.suspend("k", os.getpid()))
    stage.stub.script(two, **{f"die__{call}": when})
    asyncio.run(server.resume("k"))
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")
    assert not stage.record().may_hold


@pytest.mark.parametrize(
    ("state", "goal", "after"),
    [
        ("running", "suspended", "running"),
        ("locked", "suspended", "running"),
        ("checkpointed", "suspended", "checkpointed"),
        ("checkpointed", "running", "running"),
        ("locked", "running", "running"),
    ],
)
def test_what_a_dead_server_left_is_completed_or_undone(
    stage: Any, state: str, goal: str, after: str
) -> None:
    """The record is one that was kept in the middle; the driver's state is what it came to."""
    pid = stage.stub.start()
    server = stage.server()
    asyncio.run(server.suspend("k", pid))
    kept = {**json.loads(stage.kept["k"]), "settled": False, "goal": goal}
    stage.kept["k"] = json.dumps(kept)
    if state != "checkpointed":
        stage.stub.script(pid, state=state)
        stage.stub.set_nvml({"gpu.0.used": 100 * MIB, "gpu.0.processes": f"{pid}:{100 * MIB}"})
    record = asyncio.run(stage.server().recover("k"))
    assert stage.stub.get(pid) == after
    assert record == stage.record()
    assert record.suspended == (after == "checkpointed")
    assert record.may_hold == (after == "checkpointed")


def test_half_suspended_without_room_stays_out_wholly(stage: Any) -> None:
    one, two = stage.stub.start(600 * MIB), stage.stub.start(100 * MIB)
    asyncio.run(stage.server().suspend("k", os.getpid()))
    stage.kept["k"] = json.dumps({**json.loads(stage.kept["k"]), "settled": False})
    stage.stub.script(two, state="locked")
    stage.stub.set_nvml({"gpu.0.used": 800 * MIB})
    record = asyncio.run(stage.server().recover("k"))
    assert record.suspended
    assert (stage.stub.get(one), stage.stub.get(two)) == ("checkpointed", "checkpointed")


@pytest.mark.parametrize(
    ("call", "limits"), [("lock", {"lock_grace_s": 0.3}), ("checkpoint", {"copy_s": 0.3})]
)
def test_a_call_that_hangs_is_ended_with_its_helper(
    stage: Any, call: str, limits: dict[str, float]
) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    stage.stub.script(two, **{f"hang__{call}": 1})
    server = stage.server(limits=Limits(**{"start_s": 120, "look_s": 120, "state_s": 60, **limits}))
    with pytest.raises(CheckpointRefusedError, match="took longer") as caught:
        asyncio.run(server.suspend("k", os.getpid(), lock_timeout_s=0.1))
    assert caught.value.why == "overrun"
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")
    assert not stage.record().may_hold


def test_processes_that_wait_for_each_other_are_released_one_by_one(stage: Any) -> None:
    """With NCCL the driver does not answer for one process while its peer is locked."""
    one, two = stage.stub.start(), stage.stub.start()
    stage.stub.script(two, waits_for=one)
    server = stage.server(limits=Limits(start_s=120, look_s=120, state_s=2.0))
    with pytest.raises(ERRORS):
        asyncio.run(server.suspend("k", os.getpid()))
    assert (stage.stub.get(one), stage.stub.get(two)) == ("running", "running")


def test_a_call_that_lies_is_found_out(stage: Any) -> None:
    pid = stage.stub.start()
    stage.stub.script(pid, lie__checkpoint=1)
    with pytest.raises(CheckpointRefusedError, match="stayed as it was") as caught:
        asyncio.run(stage.server().suspend("k", pid))
    assert caught.value.why == "no_effect"
    assert stage.stub.get(pid) == "running"


def test_a_process_that_the_driver_gave_up_is_named_and_the_others_are_released(stage: Any) -> None:
    one, two = stage.stub.start(), stage.stub.start()
    asyncio.run(stage.server().suspend("k", os.getpid()))
    stage.stub.script(one, state="failed")
    with pytest.raises(CheckpointFailedError, match="cannot leave") as caught:
        asyncio.run(stage.server().resume("k"))
    assert (caught.value.fallback, caught.value.held) == ("relaunch", True)
    assert stage.stub.get(two) == "running"
    assert {p.pid: p.state.value for p in stage.record().processes}[one] == "failed"


def test_a_helper_whose_server_is_gone_undoes_what_it_began(stage: Any) -> None:
    pid = stage.stub.start()
    stage.stub.script(pid, delay_ms__lock=200)
    helper = subprocess.Popen(
        [sys.executable, "-m", MODULE, "libcuda"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=stage.stub.environ,
        text=True,
    )
    assert helper.stdin is not None
    assert helper.stdout is not None
    order = {
        "do": "reach",
        "goal": "suspended",
        "processes": [[pid, start_ticks(pid)]],
        "lock_timeout_ms": 1000,
        "gpu_map": None,
        "one_by_one": False,
        "wait_s": 60,
    }
    helper.stdin.write(json.dumps(order) + "\n")
    helper.stdin.flush()
    for line in helper.stdout:
        if json.loads(line).get("step") == "lock":
            break
    helper.stdout.close()
    helper.stdin.close()
    assert helper.wait(timeout=60) == 0
    assert [c for c, _, _ in stage.stub.calls() if c != "begin"] == ["lock", "unlock"]
    assert stage.stub.get(pid) == "running"


def test_a_pid_that_was_given_anew_is_never_touched(stage: Any) -> None:
    pid = stage.stub.start()
    asyncio.run(stage.server().suspend("k", pid))
    kept = json.loads(stage.kept["k"])
    kept["processes"][0]["started"] -= 1
    stage.kept["k"] = json.dumps(kept)
    before = stage.stub.calls()
    with pytest.raises(CheckpointFailedError, match="ended"):
        asyncio.run(stage.server().resume("k"))
    assert stage.stub.calls() == before


def test_the_record_is_kept_before_a_process_is_touched(stage: Any) -> None:
    """A server that dies in the first call must find the process named."""
    pid, seen = stage.stub.start(), []

    def keep(record: Any) -> None:
        named = [p.pid for p in record.processes]
        seen.append((named, record.settled, [c for c, _, _ in stage.stub.calls()]))

    asyncio.run(CudaCheckpoint(keep, way="libcuda", environ=stage.stub.environ).suspend("k", pid))
    assert seen[0] == ([pid], False, [])
    assert seen[-1] == ([pid], True, ["lock", "checkpoint"])


CALLS = ("lock", "checkpoint", "restore", "unlock")
ONE_FAULT = st.sampled_from(
    [{f"die__{call}": when} for call in CALLS for when in ("before", "after")]
    + [{f"error__{call}": code} for call in CALLS for code in (304, 801)]
    + [{f"lie__{call}": 1} for call in CALLS]
    + [{"error__checkpoint": 801, "error_times__checkpoint": 2}]
)
# The second is often what stands in the way of undoing the first.
FAULTS = st.lists(ONE_FAULT, max_size=2).map(
    lambda faults: {k: v for f in faults for k, v in f.items()}
)


def test_no_sequence_leaves_a_process_held_without_the_record_saying_so(
    stub_cuda: Any, make_stage: Any, libraries: Path
) -> None:
    class Machine(RuleBasedStateMachine):
        """Two processes of one kernel; helpers and servers die."""

        @initialize()
        def begin(self) -> None:
            self.folder = tempfile.TemporaryDirectory()
            self.stub = stub_cuda.StubCuda(libraries, Path(self.folder.name))
            self.stage = make_stage(self.stub)
            self.pids = [self.stub.start(100 * MIB, gpu) for gpu in (0, 1)]
            self.root, self.runs = os.getpid(), 0
            self.server: CudaCheckpoint = self.stage.server()

        def attempt(self, which: int, fault: dict[str, Any], operation: Any) -> None:
            self.runs += 1
            # What is remembered of failures would refuse most of the sequence.
            self.stub.set_nvml({"driver": f"600.{self.runs}"})
            self.stub.script(self.pids[which], **fault)
            whole = True
            try:
                asyncio.run(operation())
            except CheckpointRefusedError:
                pass
            except CheckpointFailedError:
                whole = self.stage.record().settled
            if whole:
                assert self.states() in (["running"] * 2, ["checkpointed"] * 2)
            self.stub.script(self.pids[which], **dict.fromkeys(fault))

        def states(self) -> list[str]:
            return [self.stub.get(pid) for pid in self.pids]

        @precondition(lambda self: not self.stage.record().suspended)
        @rule(which=st.integers(0, 1), fault=FAULTS)
        def suspend(self, which: int, fault: dict[str, Any]) -> None:
            self.attempt(which, fault, lambda: self.server.suspend("k", self.root))

        @precondition(lambda self: self.stage.record().may_hold)
        @rule(which=st.integers(0, 1), fault=FAULTS, move=st.booleans())
        def resume(self, which: int, fault: dict[str, Any], move: bool) -> None:
            first, second = stub_cuda.UUIDS[:2]
            gpu_map = {first: second, second: first} if move else None
            self.attempt(which, fault, lambda: self.server.resume("k", gpu_map=gpu_map))

        @rule()
        def restart(self) -> None:
            self.server = self.stage.server()

        @invariant()
        def the_record_names_what_is_held(self) -> None:
            if not hasattr(self, "stage"):
                return
            record = self.stage.record()
            named = {p.pid for p in record.processes}
            for pid, state in zip(self.pids, self.states(), strict=True):
                if state in HELD:
                    assert record.may_hold
                    assert pid in named
            if record.suspended:
                assert self.states() == ["checkpointed"] * 2

        def teardown(self) -> None:
            if not hasattr(self, "stage"):
                return
            try:
                asyncio.run(self.stage.server().resume("k"))
                assert self.states() == ["running"] * 2
                assert self.stub.used(0) + self.stub.used(1) == 200 * MIB
                assert not self.stage.record().may_hold
            finally:
                self.stub.close()
                self.folder.cleanup()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20,
            stateful_step_count=6,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
