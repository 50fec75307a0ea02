"""Driver checkpoints on a real GPU; runs only where there is one whose driver has them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from jupyter_gpu_predict.devices.cuda_checkpoint import CheckpointRecord, CudaCheckpoint
from jupyter_gpu_predict.devices.cuda_checkpoint_steps import ProcessState
from jupyter_gpu_predict.devices.cuda_checkpoint_talk import MODULE
from jupyter_gpu_predict.errors import CheckpointRefusedError

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MIB = 1 << 20
SIZE = 512 * MIB
CHILD = """
import select, sys, torch
held = torch.arange(SIZE // 4, dtype=torch.int32, device="cuda")
want = int(held.sum())
torch.cuda.synchronize()
print("ready", held.data_ptr(), flush=True)
for line in sys.stdin:
    if line.startswith("spin"):
        # A cell in the middle of its work: short launches that never end by themselves.
        some = torch.ones(1000, 1000, device="cuda")
        print("spinning", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            some = (some @ some).clamp(max=1.0)
    if line.startswith("long"):
        # About ten seconds in one launch, so that no lock comes in between.
        torch.cuda._sleep(20_000_000_000)
        print("launched", flush=True)
    if line.startswith("check"):
        print("same", int(held.sum()) == want, held.data_ptr(), flush=True)
""".replace("SIZE", str(SIZE))


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.line().split()[1]

    @property
    def pid(self) -> int:
        return self.process.pid

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def check(self) -> None:
        self.say("check")
        assert self.line() == f"same True {self.address}"


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.process.kill()
    made.process.communicate()


def server(way: str = "auto") -> tuple[CudaCheckpoint, list[CheckpointRecord]]:
    kept: list[CheckpointRecord] = []
    made = CudaCheckpoint(kept.append, way=way)
    return made, kept


def able(made: CudaCheckpoint, child: Child, **options: Any) -> None:
    refusal = asyncio.run(made.assess("k", child.pid, **options)).refusal
    if refusal is not None:
        pytest.skip(f"this machine cannot: {refusal.why}: {refusal.message}")


@pytest.mark.parametrize("way", ["cuda.core", "libcuda"])
def test_device_memory_goes_wholly_and_the_same_bytes_come_back(child: Child, way: str) -> None:
    made, kept = server(way)
    able(made, child)
    free = torch.cuda.mem_get_info()[0]
    out = asyncio.run(made.suspend("k", child.pid))
    assert kept[-1].suspended
    assert out.left_bytes == 0
    assert torch.cuda.mem_get_info()[0] - free >= SIZE
    asyncio.run(made.resume("k"))
    child.check()
    assert not kept[-1].may_hold


def test_it_can_be_done_over_and_over(child: Child) -> None:
    made, _ = server()
    able(made, child)
    for _ in range(3):
        asyncio.run(made.suspend("k", child.pid))
        asyncio.run(made.resume("k"))
        child.check()


def test_a_map_of_all_gpus_to_themselves_is_taken(child: Child) -> None:
    made, _ = server()
    able(made, child, to_other_gpu=True)
    found = asyncio.run(made.assess("k", child.pid))
    asyncio.run(made.suspend("k", child.pid))
    asyncio.run(made.resume("k", gpu_map={uuid: uuid for uuid in found.gpus}))
    child.check()


def test_in_the_middle_of_a_cell(child: Child) -> None:
    made, _ = server()
    able(made, child)
    child.say("spin")
    assert child.line() == "spinning"
    asyncio.run(made.suspend("k", child.pid, lock_timeout_s=30))
    asyncio.run(made.resume("k"))
    child.say("end of the cell")
    child.check()


def test_a_lock_that_times_out_leaves_the_kernel_running(child: Child) -> None:
    made, kept = server()
    able(made, child)
    child.say("long")
    assert child.line() == "launched"
    with pytest.raises(CheckpointRefusedError) as caught:
        asyncio.run(made.suspend("k", child.pid, lock_timeout_s=0.2))
    assert caught.value.why == "lock_timeout"
    assert not kept[-1].may_hold
    states = asyncio.run(made.state("k", child.pid))
    assert set(states.values()) == {ProcessState.RUNNING}
    child.check()


def test_a_helper_killed_in_the_copy_is_made_good(child: Child) -> None:
    made, kept = server()
    able(made, child)

    async def scene() -> None:
        task = asyncio.ensure_future(made.suspend("k", child.pid))
        while not any(p.state is ProcessState.LOCKED for r in kept for p in r.processes):
            await asyncio.sleep(0.001)
        for process in psutil.Process().children():
            if MODULE in process.cmdline():
                process.kill()
        await asyncio.gather(task, return_exceptions=True)
        if made.record("k").may_hold:
            await made.resume("k")

    asyncio.run(scene())
    assert not kept[-1].may_hold
    child.check()
