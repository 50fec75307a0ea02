"""Driver checkpoints act on what processes really hold of the emulated devices."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from emulators.accelerator import Worker
from emulators.machine import EmulatedMachine

from jupyter_gpu_predict.devices.cuda_checkpoint import CudaCheckpoint, Limits
from jupyter_gpu_predict.devices.nvml import NvmlGpus
from jupyter_gpu_predict.errors import GpuPredictError

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("accelerator")]

MIB = 1 << 20
SLOW_MACHINE = Limits(start_s=120, look_s=120, state_s=60, lock_grace_s=60, copy_s=60)
_held: dict[str, Any] = {}


@pytest.fixture(scope="module")
def machine(
    accelerator: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmulatedMachine]:
    folder = tmp_path_factory.mktemp("machine")
    made = EmulatedMachine(folder, capacity=512 * MIB, context_bytes=2 * MIB)
    yield made
    made.close()


@pytest.fixture(scope="module")
def workers(machine: EmulatedMachine) -> Iterator[list[Worker]]:
    with worker(machine) as one, worker(machine) as two:
        yield [one, two]


@pytest.fixture(autouse=True)
def clean(machine: EmulatedMachine, workers: list[Worker]) -> Iterator[None]:
    yield
    for process in workers:
        # A call of one that a failed test has left to the driver would never return.
        if machine.state(process.pid) in {None, "running"}:
            process.call(drop)


@pytest.fixture
def driver(machine: EmulatedMachine) -> CudaCheckpoint:
    return CudaCheckpoint(
        lambda record: None, way="libcuda", limits=SLOW_MACHINE, environ=machine.environ
    )


def hold(megabytes: int, name: str = "a") -> bool:
    import torch

    torch.manual_seed(megabytes)
    try:
        _held[name] = torch.rand(MIB // 4, device="cpu").repeat(megabytes).to("emu")
    except torch.OutOfMemoryError:
        return False
    _held[name, "sum"] = total(name)
    return True


def whole(name: str = "a") -> bool:
    return bool(total(name) == _held[name, "sum"])


def total(name: str) -> float:
    import torch

    return float(_held[name].cpu().sum(dtype=torch.float64).item())


def drop() -> None:
    import torch

    _held.clear()
    torch.emu.empty_cache()


def nvml_says() -> list[tuple[int | None, list[tuple[int, int | None]]]]:
    gpus = NvmlGpus(environ={})
    try:
        return [(status.used_bytes, list(status.processes)) for status in gpus.read()]
    finally:
        gpus.close()


def worker(machine: EmulatedMachine, gpu: int = 0) -> Worker:
    return Worker(machine.devices, [machine.uuids[gpu]], machine.environ)


def test_a_checkpoint_gives_memory_to_others_and_a_restore_waits_for_room(
    machine: EmulatedMachine, driver: CudaCheckpoint, workers: list[Worker]
) -> None:
    one, two = workers
    assert one.call(hold, 300)
    assert not two.call(hold, 240)
    assert dict(two.call(nvml_says)[0][1]) == {one.pid: 302 * MIB, two.pid: 2 * MIB}

    suspended = asyncio.run(driver.suspend("k", one.pid))

    assert suspended.bytes == 302 * MIB
    assert machine.state(one.pid) == "checkpointed"
    assert two.call(nvml_says)[0] == (2 * MIB, [(two.pid, 2 * MIB)])
    assert two.call(hold, 240)
    with pytest.raises(GpuPredictError, match="memory"):
        asyncio.run(driver.resume("k"))
    assert machine.state(one.pid) == "checkpointed"
    assert machine.used() == 242 * MIB
    two.call(drop)
    asyncio.run(driver.resume("k"))
    assert machine.state(one.pid) == "running"
    assert machine.used() == 304 * MIB
    assert one.call(whole)


def test_calls_of_a_locked_process_wait_until_it_is_unlocked(
    machine: EmulatedMachine, driver: CudaCheckpoint, workers: list[Worker]
) -> None:
    one = workers[0]
    assert one.call(hold, 10)
    before = machine.devices.holders(0)[one.pid]
    for function, args in ((hold, (20, "b")), (whole, ())):
        asyncio.run(driver.suspend("k", one.pid))
        one.begin(function, *args)
        assert one.running()
        assert one.pid not in machine.devices.holders(0)
        assert one.running()
        asyncio.run(driver.resume("k"))
        assert one.end()
    assert machine.devices.holders(0)[one.pid] == before + 20 * MIB


def test_it_is_restored_on_another_gpu_and_stays_there(
    machine: EmulatedMachine, driver: CudaCheckpoint
) -> None:
    first, second = machine.uuids
    with worker(machine) as one:
        assert one.call(hold, 10)
        asyncio.run(driver.suspend("k", one.pid))
        asyncio.run(driver.resume("k", gpu_map={first: second, second: first}))
        assert one.call(whole)
        assert one.call(hold, 20, "b")
        assert one.pid not in machine.devices.holders(0)
        assert machine.devices.holders(1) == {one.pid: 32 * MIB}
        one.call(drop)
        assert machine.devices.holders(1) == {one.pid: 2 * MIB}
        assert one.call(hold, 10)
        asyncio.run(driver.suspend("k", one.pid))
        one.kill()
        assert machine.devices.saved(one.pid) == 0
        assert machine.state(one.pid) is None


def test_a_lost_gpu_is_lost_to_torch_and_nvml(
    machine: EmulatedMachine, workers: list[Worker]
) -> None:
    one = workers[0]
    assert one.call(hold, 10)
    machine.set_lost(0)
    lost, other = one.call(nvml_says)
    assert lost[0] is None
    assert other == (0, [])
    with pytest.raises(AssertionError, match="is lost"):
        one.call(whole)
    machine.set_lost(0, lost=False)
    assert one.call(whole)
