"""Several processes on the same emulated devices, and what NVML says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Devices, NoCompilerError, Worker, build
from emulators.nvml import stub_nvml

# Whichever test comes first builds the library.
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("accelerator")]

MIB = 1 << 20
_held: dict[str, Any] = {}


@pytest.fixture
def devices(tmp_path: Path) -> Devices:
    return Devices(tmp_path / "ledger", (256 * MIB, 256 * MIB))


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = stub_nvml.build(tmp_path_factory.mktemp("nvml"))
    if built is None:
        pytest.skip("no C compiler (cc) to build the stub NVML library with")
    return built


@pytest.fixture
def nvml(stub: Path, tmp_path: Path, devices: Devices) -> Iterator[Any]:
    reader = stub_nvml.StubNvml(stub, tmp_path)
    reader.set(devices.nvml_values(stub_nvml.HEALTHY))
    yield reader
    reader.close()


def hold(n: int, name: str = "", device: str = "emu:0") -> str:
    import torch

    try:
        _held[name] = torch.ones(n, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        return str(error)
    return ""


def drop() -> None:
    import torch

    _held.clear()
    torch.emu.empty_cache()


def free_bytes() -> int:
    import torch

    return torch.emu.mem_get_info(0)[0]


def count() -> tuple[int, bool]:
    import torch

    return torch.emu.device_count(), torch.emu.is_available()


def test_two_processes_share_one_devices_capacity_and_nvml_agrees(
    devices: Devices, nvml: Any
) -> None:
    with Worker(devices) as one, Worker(devices) as two:
        one.begin(hold, 100 * MIB)
        two.begin(hold, 60 * MIB)
        assert (one.end(), two.end()) == ("", "")
        assert devices.holders(0) == {one.pid: 100 * MIB, two.pid: 60 * MIB}
        assert one.call(free_bytes) == two.call(free_bytes) == 96 * MIB
        first, second = nvml.read()
        assert (first["used_bytes"], second["used_bytes"]) == (160 * MIB, 0)
        assert dict(first["processes"]) == devices.holders(0)

        refused = two.call(hold, 100 * MIB, "more")
        assert f"Process {one.pid} has 100.00 MiB memory in use" in refused
        assert "96.00 MiB is free" in refused
        one.call(drop)
        assert two.call(hold, 100 * MIB, "more") == ""
        assert devices.holders(0) == {one.pid: 0, two.pid: 160 * MIB}

        # A process that was killed holds nothing more, though nobody has reaped it yet.
        two.kill()
        assert devices.holders(0) == {one.pid: 0}
        assert [pid for pid, _ in nvml.read()[0]["processes"]] == [one.pid]
        assert one.call(hold, 250 * MIB) == ""
        assert nvml.read()[0]["used_bytes"] == 250 * MIB
        _ended(two)
    assert devices.holders(0) == {}
    # Who leaves in the ordinary way takes its record along.
    assert one.pid not in _pids(devices)
    assert nvml.read()[0]["processes"] == []


def _ended(worker: Worker) -> None:
    assert worker.process.wait(10) == -9


def _pids(devices: Devices) -> set[int]:
    data = devices.ledger.read_bytes()[64:]
    return {int.from_bytes(data[i : i + 8], sys.byteorder) for i in range(0, len(data), 32)}


def overcommit(seed: int) -> int:
    import random

    import torch

    order = random.Random(seed)
    refused = 0
    for _ in range(400):
        name = str(order.randrange(5))
        _held.pop(name, None)
        try:
            _held[name] = torch.empty(order.randrange(80 * MIB), dtype=torch.uint8, device="emu")
        except torch.OutOfMemoryError:
            refused += 1
    return refused


def test_processes_that_allocate_at_random_never_exceed_the_capacity(devices: Devices) -> None:
    with Worker(devices) as one, Worker(devices) as two:
        one.call(count)  # both have started when the race begins
        two.call(count)
        one.begin(overcommit, 1)
        two.begin(overcommit, 2)
        most = 0
        while one.running() or two.running():
            most = max(most, devices.used(0))
        assert one.end() + two.end() > 0
        assert 0 < most <= 256 * MIB


def use_after_fork() -> list[Any]:
    import torch

    tensor = torch.ones(4, device="emu")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for use in (tensor.cpu, lambda: torch.ones(1, device="emu")):
            try:
                use()
            except RuntimeError as error:
                said.append(str(error))
        del tensor
        os.write(writing, f"{len(said)} {said[0][:40]}".encode())
        os._exit(0)
    os.close(writing)
    status = os.waitpid(pid, 0)[1]
    return [status, os.read(reading, 200).decode(), tensor.sum().item()]


def test_a_forked_child_cannot_use_the_device_and_leaves_its_parents_account_alone(
    devices: Devices,
) -> None:
    with Worker(devices) as worker:
        status, said, total = worker.call(use_after_fork)
        assert (status, total) == (0, 4)
        assert said.startswith("2 Cannot re-initialize the emulated")
        assert devices.holders(0) == {worker.pid: 2 * MIB}


def test_a_process_sees_what_cuda_visible_devices_lists(tmp_path: Path) -> None:
    devices = Devices(tmp_path / "ledger", (256 * MIB, 256 * MIB), context_bytes=30 * MIB)
    with (
        Worker(devices, [devices.uuids[1]]) as second,
        Worker(devices, [1, 0]) as turned,
        Worker(devices, []) as none,
    ):
        workers = (second, turned, none)
        for worker in workers:
            worker.begin(count)
        assert [worker.end() for worker in workers] == [(1, True), (2, True), (0, False)]
        assert devices.used(0) == devices.used(1) == 0
        second.call(hold, 10 * MIB)
        # The context comes on top, and the first visible device is number 1 of the machine.
        assert (devices.used(0), devices.holders(1)) == (0, {second.pid: 40 * MIB})
        turned.call(hold, 10 * MIB, "", "emu:1")
        assert devices.holders(0) == {turned.pid: 40 * MIB}


def test_a_process_without_settings_has_devices_of_its_own(tmp_path: Path) -> None:
    site = Path(__file__).parent / "accelerator" / "site"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("EMULATED_")}
    environ.pop("CUDA_VISIBLE_DEVICES", None)
    code = (
        "import torch; torch.ones(3, device='emu:1');"
        "print(torch.emu.device_count(), torch.emu.mem_get_info(1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, "PYTHONPATH": str(site), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split("\n")[0] == f"2 {((1024 - 2) * MIB, 1024 * MIB)}"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_refused_and_kept(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("something of somebody's " * 8)
    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env=Devices(other, (MIB,)).environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "notes.txt is not a ledger" in done.stderr
    assert other.read_text().startswith("something")


def test_without_a_compiler_the_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NoCompilerError, match=r"no C\+\+ compiler"):
        build(tmp_path)
