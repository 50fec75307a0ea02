"""A control loop that is turned by hand, and kernels that can misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_gpu_predict.control.loop import ControlLoop
from jupyter_gpu_predict.control.observe import build_view
from jupyter_gpu_predict.control.operations import Operations
from jupyter_gpu_predict.control.ports import Resumed, Suspended
from jupyter_gpu_predict.control.records import KernelRecord
from jupyter_gpu_predict.core.migration.cost import Bandwidths
from jupyter_gpu_predict.core.model import MIB, Claim, Forecast, KernelView, Lease, PolicySettings
from jupyter_gpu_predict.devices.simulated import SimulatedGpus
from jupyter_gpu_predict.errors import LinkTimeoutError, StaleEpochError
from jupyter_gpu_predict.store.trace_store import Store

GPU = "SIM-GPU-0"


class Kernel:
    """A kernel that does what the loop says, or fails as it is told."""

    has_agent = True

    def __init__(self) -> None:
        self.lives = True
        self.said: list[tuple[Any, ...]] = []
        self.refuses: Exception | None = None
        self.deaf: Exception | None = None
        self.record: KernelRecord | None = None

    @property
    def pid(self) -> int | None:
        return 4711

    def pids(self) -> tuple[int, ...]:
        return (4711,)

    async def bind(self, lease: Lease, *, claim_id: str | None, restore: bool, **_: Any) -> Any:
        if self.deaf is not None:
            raise self.deaf
        self.said.append(("bind", lease.bytes, lease.epoch, claim_id, restore))
        return {"restored_bytes": 0}

    async def cap(self, cap_bytes: int, timeout_s: float) -> dict[str, Any]:
        if self.deaf is not None:
            raise self.deaf
        self.said.append(("cap", cap_bytes))
        return {"reserved_bytes": 0}

    async def reclaim(self, epoch: int, *, wait: bool) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        assert self.record is not None
        self.said.append(("reclaim", epoch))
        freed = self.record.used_bytes
        return {"freed_bytes": freed, "suspended_bytes": freed, "resident_bytes": 0, "seconds": 0.1}

    async def tell_queue(self, *said: Any) -> dict[str, Any]:
        self.said.append(("queue", *said))
        return {"waits": True}

    def granted(self) -> list[str]:
        """Return the claims that it was told are granted."""
        return [said[3] for said in self.said if said[0] == "bind" and said[3]]

    async def refuse(self, claim_id: str, reason: str) -> dict[str, Any]:
        self.said.append(("refuse", claim_id, reason))
        return {}

    async def alive(self) -> bool:
        return self.lives


class Agent:
    """Gives a kernel of the stage an agent's memory for epochs; it may refuse what it is told."""

    def __init__(self, port: Kernel) -> None:
        self.known: Lease | None = None
        self.refuses: Exception | None = None
        self.hears_late = False
        self.checkpointed = False
        self._bind = port.bind
        port.bind = self.bind  # type: ignore[method-assign]

    async def bind(self, lease: Lease, *, checkpointed: bool = False, **more: Any) -> Any:
        if self.known is not None and lease.epoch < self.known.epoch:
            raise StaleEpochError("the command is stale")
        if checkpointed and self.refuses is not None:
            raise self.refuses
        self.known, self.checkpointed = lease, checkpointed
        if self.hears_late:
            self.hears_late = False
            raise LinkTimeoutError("no answer within 10 s")
        return await self._bind(lease, **more)


class Driver:
    """Driver checkpoints that do as they are told, or fail as they are told; nothing is real."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.proven: set[str] = {"between cells", "mid-cell", "move"}
        self.sizes: dict[str, int] = {}
        self.out: dict[str, dict[str, int]] = {}
        self.halted: set[str] = set()
        self.unsettled: set[str] = set()
        self.fails: dict[str, Exception] = {}
        self.said: list[tuple[Any, ...]] = []
        self.gate: asyncio.Event | None = None

    def why_not(self, kernel_id: str, *, mid_cell: bool) -> str | None:
        kind = "mid-cell" if mid_cell else "between cells"
        return None if kind in self.proven else f"{kind} is not proven"

    def why_not_move(self, kernel_id: str, target_uuid: str) -> str | None:
        return None if "move" in self.proven else "moving is not proven"

    async def suspend(
        self, kernel_id: str, root: int, *, mid_cell: bool, to_other_gpu: bool = False
    ) -> Suspended:
        self.said.append(("suspend", kernel_id, mid_cell))
        if "suspend" in self.fails:
            error = self.fails["suspend"]
            if getattr(error, "held", False):
                self.out[kernel_id] = {self.gpu: self.sizes.get(kernel_id, 0)}
                self.unsettled.add(kernel_id)
            raise error
        self.out[kernel_id] = {self.gpu: self.sizes[kernel_id]}
        if mid_cell:
            self.halted.add(kernel_id)
        return Suspended(self.sizes[kernel_id], 0.5, 0.25)

    async def resume(self, kernel_id: str, *, gpu_map: Mapping[str, str] | None = None) -> Resumed:
        self.said.append(("resume", kernel_id, dict(gpu_map or {})))
        if self.gate is not None:
            await self.gate.wait()
        if gpu_map and "move" in self.fails:
            raise self.fails["move"]
        if "resume" in self.fails:
            raise self.fails["resume"]
        size = sum(self.out.pop(kernel_id).values())
        self.halted.discard(kernel_id)
        self.unsettled.discard(kernel_id)
        return Resumed(size, 0.25, 0.25)

    async def recover(self, kernel_ids: Sequence[str]) -> None:
        for kernel_id in set(kernel_ids) & self.unsettled:
            self.out.pop(kernel_id)
            self.unsettled.discard(kernel_id)

    def held(self, kernel_id: str) -> bool:
        return kernel_id in self.out

    def suspended(self, kernel_id: str) -> bool:
        return self.held(kernel_id) and kernel_id not in self.unsettled

    def gpus(self, kernel_id: str) -> Mapping[str, int]:
        return self.out.get(kernel_id, {})

    def in_mid_cell(self, kernel_id: str) -> bool:
        return kernel_id in self.halted

    def forget(self, kernel_id: str) -> None:
        self.out.pop(kernel_id, None)
        self.said.append(("forget", kernel_id))


class NoForecasts:
    async def refresh(self, *_: Any) -> Forecast:
        raise LinkTimeoutError("no forecasts in this test")

    def forget(self, kernel_id: str) -> None:
        pass


class Stage:
    """A loop that is turned by hand, with a clock that stands still."""

    def __init__(self, folder: Path, gpus: int = 1) -> None:
        self.now = 1000.0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.store = Store(f"sqlite:///{folder / 'state.db'}")
        self.gpus = SimulatedGpus(gpus, 512 * MIB, clock=lambda: self.now)
        self.loop = ControlLoop(
            backend=self.gpus,
            store=self.store,
            forecasting=NoForecasts(),
            operations=Operations(lambda: self.now, lambda _: None),
            emit=lambda kind, data: self.events.append((kind, data)),
            settings=PolicySettings(grace_period_s=1.0, prebind=False),
            clock=lambda: self.now,
        )

    async def kernel(self, name: str, used: int = 0, *, agent: bool = True) -> Kernel:
        """Start a kernel that holds `used` bytes and has been idle for a minute."""
        port = Kernel()
        port.has_agent = agent
        port.record = KernelRecord(
            name, "python3", f"{name}.ipynb", port, self.now - 60, ready=True, used_bytes=used,
            last_used_s=self.now - 60,
        )  # fmt: skip
        await self.loop.leases.bind(name, GPU, used)
        self.loop.kernel_started(port.record)
        self.now += 10
        return port

    async def suspended(self, name: str = "idle", used: int = 400 * MIB, **more: Any) -> Any:
        """Start a kernel and have the driver take it, which must be there."""
        port = await self.kernel(name, used, **more)
        driver, record = self.loop.checkpoints, port.record
        assert isinstance(driver, Driver)
        assert record is not None
        driver.sizes[name] = used + 50 * MIB
        await self.loop.reclaim(name, "test")
        assert record.checkpointed
        return port

    async def turn(self) -> None:
        """Turn the loop once and let what it started in the background run."""
        await self.loop.tick()
        for _ in range(5):
            await asyncio.sleep(0)

    async def until(self, what: Callable[[], Any]) -> None:
        """Turn the loop until something is so; the clock stands still."""
        for _ in range(500):
            if what():
                return
            await self.turn()
            await asyncio.sleep(0.01)
        raise AssertionError("it never came about")

    def driver(self) -> Driver:
        """Give the loop a driver that is quicker than anything in place."""
        driver = Driver(GPU)
        self.loop.checkpoints = driver
        self.loop.speeds.now = Bandwidths(
            checkpoint_bytes_per_s=1e12, resume_bytes_per_s=1e12, helper_s=1e-6
        )
        return driver

    def view(self, name: str) -> KernelView:
        """Return a kernel as the policy would see it now."""
        return next(k for k in build_view(self.loop).kernels if k.kernel_id == name)

    def claim(self, name: str, size: int, **more: Any) -> Claim:
        claim = Claim(f"claim-{name}", name, size, self.now, self.now + 60, **more)
        self.loop.claim(claim)
        return claim

    def lease(self, name: str) -> Lease:
        lease = self.loop.leases.get(name)
        assert lease is not None
        return lease

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]
