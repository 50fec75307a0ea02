"""Driver checkpoints as the server has them: proven, remembered, and known again after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulators.checkpoint import stub_cuda

from jupyter_gpu_predict.core.model import MIB
from jupyter_gpu_predict.devices.cuda_checkpoint_proof import Proof, ProofFile
from jupyter_gpu_predict.errors import CheckpointRefusedError, StoreError
from jupyter_gpu_predict.server.checkpoints import REFUSED_S, DriverCheckpoints
from jupyter_gpu_predict.store.records import KernelRecord
from jupyter_gpu_predict.store.trace_store import Store

DRIVER, NAME = "580.95.05", "Stub H200"
PROOF = Proof(DRIVER, "libcuda", (NAME,), True, True, (NAME,), 0.1, 0.1, 0.0)


class Host:
    """A store, a proof, and as much of a control loop as is asked of it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder / 'state.db'}")
        self.proof = ProofFile(folder / "proof.json")
        self.proof.write(PROOF)
        self.now = 1000.0
        self.driver = DRIVER
        self.name = NAME
        lease = SimpleNamespace(gpu_uuid=stub_cuda.UUIDS[0])
        self.loop: Any = SimpleNamespace(
            leases=SimpleNamespace(get=lambda kernel_id: lease),
            gpu_name=lambda uuid: self.name,
            clock=lambda: self.now,
        )

    def server(self, **options: Any) -> DriverCheckpoints:
        return DriverCheckpoints(self.loop, self.store, self.proof, lambda: self.driver, **options)

    def remember(self, kernel_id: str) -> None:
        self.store.save_kernel(
            KernelRecord(kernel_id, "python3", 1, 0.0, None, "f", {}, None, None, None, None, "/",
                         1, 0.0, (), None)
        )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = stub_cuda.build(tmp_path_factory.mktemp("cuda"))
    if built is None:
        pytest.skip("no C compiler (cc) to build the stub of the CUDA driver with")
    return built


@pytest.fixture
def stub(libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = stub_cuda.StubCuda(libraries, tmp_path)
    for name in ("LD_LIBRARY_PATH", "CUDA_STUB_STATE", "NVML_STUB_STATE"):
        monkeypatch.setenv(name, made.environ[name])
    yield made
    made.close()


def test_only_what_is_proven_for_this_driver_and_gpu_is_done(host: Host) -> None:
    server = host.server()
    assert server.why_not("k", mid_cell=False) is None
    assert server.why_not("k", mid_cell=True) is None
    assert server.why_not_move("k", "GPU") is None
    host.proof.write(replace(PROOF, mid_cell=False, move=()))
    assert server.why_not("k", mid_cell=False) is None
    assert "in the middle" in str(server.why_not("k", mid_cell=True))
    assert "not proven" in str(server.why_not_move("k", "GPU"))
    host.name = "Stub H100"
    assert "not proven on Stub H100" in str(server.why_not("k", mid_cell=False))
    host.name, host.driver = NAME, "610.1"
    assert "not under 610.1" in str(server.why_not("k", mid_cell=False))
    host.driver = DRIVER
    host.proof.path.unlink()
    assert "--prove" in str(server.why_not("k", mid_cell=False))
    off = host.server(enabled=False)
    assert "GpuPredict.checkpoint" in str(off.why_not("k", mid_cell=False))
    assert "GpuPredict.checkpoint" in str(off.why_not_move("k", "GPU"))


def test_what_the_driver_has_is_known_to_the_next_server(host: Host, stub: Any) -> None:
    pid = stub.start(300 * MIB)
    host.remember("k")

    async def story() -> None:
        first = host.server()
        done = await first.suspend("k", pid, mid_cell=True)
        assert (done.bytes, done.left_bytes, stub.used()) == (300 * MIB, 0, 0)
        assert done.overhead_s > 0
        # The first server is killed here. The next one may even have it switched off.
        second = host.server(enabled=False)
        assert (second.held("k"), second.suspended("k"), second.in_mid_cell("k")) == (True,) * 3
        assert second.gpus("k") == {stub_cuda.UUIDS[0]: 300 * MIB}
        await second.recover(["k"])
        assert second.suspended("k")
        back = await second.resume("k")
        assert (back.bytes, stub.get(pid), second.held("k")) == (300 * MIB, "running", False)
        assert not host.server().held("k")
        second.forget("k")
        assert host.store.checkpoints() == {}

    asyncio.run(story())


def test_what_was_cut_short_is_undone_by_the_next_server(host: Host, stub: Any) -> None:
    pid = stub.start(300 * MIB)
    host.remember("k")

    async def story() -> None:
        first = host.server()
        await first.suspend("k", pid, mid_cell=False)
        kept = host.store.checkpoints()["k"]
        await first.resume("k")
        stub.script(pid, state="locked")
        kept["record"]["settled"] = False
        kept["record"]["processes"][0]["state"] = "locked"
        host.store.save_checkpoint("k", kept)
        second = host.server()
        assert second.held("k")
        assert not second.suspended("k")
        await second.recover(["k", "nobody"])
        assert (second.held("k"), stub.get(pid)) == (False, "running")

    asyncio.run(story())


def test_a_refusal_is_remembered_for_a_while(host: Host, stub: Any) -> None:
    pid = stub.start(300 * MIB)
    stub.set_nvml({"gpu.0.mig": 1})

    async def story() -> None:
        server = host.server()
        with pytest.raises(CheckpointRefusedError, match="MIG"):
            await server.suspend("k", pid, mid_cell=False)
        assert "MIG" in str(server.why_not("k", mid_cell=False))
        # What stands against one of the two need not stand against the other.
        assert server.why_not("k", mid_cell=True) is None
        host.now += REFUSED_S
        assert server.why_not("k", mid_cell=False) is None
        with pytest.raises(CheckpointRefusedError, match="MIG"):
            await server.suspend("k", pid, mid_cell=False)
        host.now += REFUSED_S
        assert "MIG" in str(server.why_not("k", mid_cell=False))
        host.now += REFUSED_S
        assert server.why_not("k", mid_cell=False) is None

    asyncio.run(story())


def test_a_refusal_that_comes_after_the_kernels_end_is_not_the_next_ones(
    host: Host, stub: Any
) -> None:
    pid = stub.start(300 * MIB)
    stub.set_nvml({"gpu.0.mig": 1})

    async def story() -> None:
        server = host.server()
        suspending = asyncio.ensure_future(server.suspend("k", pid, mid_cell=False))
        await asyncio.sleep(0)
        server.forget("k")
        with pytest.raises(CheckpointRefusedError, match="MIG"):
            await suspending
        assert server.why_not("k", mid_cell=False) is None

    asyncio.run(story())


def test_to_come_back_where_it_was_is_no_move(host: Host, stub: Any) -> None:
    pid = stub.start(300 * MIB)
    host.proof.write(replace(PROOF, move=()))

    async def story() -> None:
        server = host.server()
        await server.suspend("k", pid, mid_cell=False)
        assert server.why_not_move("k", stub_cuda.UUIDS[0]) is None
        assert "not proven" in str(server.why_not_move("k", stub_cuda.UUIDS[1]))
        await server.resume("k")

    asyncio.run(story())


@pytest.mark.parametrize("before", [0, 1], ids=["first", "second"])
def test_nothing_is_touched_that_could_not_be_written_down(
    host: Host, stub: Any, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    pid = stub.start(300 * MIB)

    def full(kernel_id: str, data: Any) -> None:
        raise StoreError("the disk is full")

    async def story() -> None:
        server = host.server()
        for _ in range(before):
            await server.suspend("k", pid, mid_cell=False)
            await server.resume("k")
        called = stub.calls()
        monkeypatch.setattr(host.store, "save_checkpoint", full)
        with pytest.raises(StoreError, match="disk is full"):
            await server.suspend("k", pid, mid_cell=False)
        assert (stub.calls(), stub.get(pid)) == (called, "running")
        # And so nobody takes it for suspended.
        assert not server.held("k")
        assert server.gpus("k") == {}

    asyncio.run(story())


def test_records_of_nobodys_kernels_and_broken_ones_are_dropped(host: Host) -> None:
    host.remember("broken")
    for kernel_id, data in (("gone", {"record": {}}), ("broken", {"record": {"goal": "?"}})):
        host.store.save_checkpoint(kernel_id, data)
    server = host.server()
    assert host.store.checkpoints() == {}
    assert not server.held("broken")
