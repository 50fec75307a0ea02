"""A control loop that is turned by hand, and kernels that can misbehave."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from jupyter_gpu_predict.control.loop import ControlLoop
from jupyter_gpu_predict.control.operations import Operations
from jupyter_gpu_predict.control.records import KernelRecord
from jupyter_gpu_predict.core.model import MIB, Claim, Forecast, Lease, PolicySettings
from jupyter_gpu_predict.devices.simulated import SimulatedGpus
from jupyter_gpu_predict.errors import LinkTimeoutError
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

    async def refuse(self, claim_id: str, reason: str) -> dict[str, Any]:
        self.said.append(("refuse", claim_id, reason))
        return {}

    async def alive(self) -> bool:
        return self.lives


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

    async def kernel(self, name: str, used: int = 0) -> Kernel:
        """Start a kernel that holds `used` bytes and has been idle for a minute."""
        port = Kernel()
        port.record = KernelRecord(
            name, "python3", f"{name}.ipynb", port, self.now - 60, ready=True, used_bytes=used,
            last_used_s=self.now - 60,
        )  # fmt: skip
        await self.loop.leases.bind(name, GPU, used)
        self.loop.kernel_started(port.record)
        self.now += 10
        return port

    async def turn(self) -> None:
        """Turn the loop once and let what it started in the background run."""
        await self.loop.tick()
        for _ in range(5):
            await asyncio.sleep(0)

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
