"""Suspending and resuming whole CUDA processes by the driver, from outside (rung 2 of the ladder).

Nothing here calls the driver: a helper process does, which is killed when a call hangs. The
kernel's record is given out to be kept before a process is touched and after each step; whatever
dies, the next attempt reads the states that the driver reports and completes or undoes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .cuda_checkpoint_gate import Refusal, Traits, refuse_suspend
from .cuda_checkpoint_kernel import KernelCheckpoint, Outcome
from .cuda_checkpoint_record import CheckpointRecord
from .cuda_checkpoint_steps import ProcessState
from .cuda_checkpoint_talk import Limits, Means

__all__ = ["Assessment", "CheckpointRecord", "CudaCheckpoint", "Limits", "Outcome", "Traits"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Assessment:
    """Whether a kernel can be suspended now, and how much device memory that would give back.

    `refusal` is ``None`` if it can. `bytes` and `gpus` count what NVML tells.
    """

    refusal: Refusal | None
    bytes: int
    gpus: Mapping[str, int]
    driver_version: str
    way: str


class CudaCheckpoint:
    """Driver checkpoints of the kernels of one machine.

    Operations on one kernel wait for each other. One whose caller is cancelled goes on to its end;
    the record then says how that was.

    Parameters
    ----------
    keep
        Is given a kernel's record each time it changes, in the event loop; it has to be kept where
        it outlives the server.
    records
        What was kept before. `recover` the kernels whose record is not `settled`.
    way
        ``"auto"``, ``"cuda.core"`` or ``"libcuda"``.
    limits
        How long to wait for what.
    python
        Interpreter of the helper; it needs this package and nvidia-ml-py.
    environ
        Environment of the helper; by default this process's.
    """

    def __init__(
        self,
        keep: Callable[[CheckpointRecord], None],
        records: Iterable[CheckpointRecord] = (),
        *,
        way: str = "auto",
        limits: Limits | None = None,
        python: str = sys.executable,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._keep = keep
        self._means = Means(way, limits or Limits(), python, environ)
        self._kernels = {
            record.kernel_id: KernelCheckpoint(record, self._means, keep) for record in records
        }
        self._tasks: set[asyncio.Task[Any]] = set()

    def record(self, kernel_id: str) -> CheckpointRecord:
        """Return what is known of a kernel."""
        known = self._kernels.get(kernel_id)
        return CheckpointRecord(kernel_id) if known is None else known.record

    def forget(self, kernel_id: str) -> None:
        """Drop the record of a kernel that has ended.

        An operation on it that goes on finds its processes gone; nothing of it is kept any more.
        """
        known = self._kernels.pop(kernel_id, None)
        if known is not None:
            known.drop()

    async def close(self) -> None:
        """Wait for the operations whose callers are gone."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def assess(
        self,
        kernel_id: str,
        root: int,
        *,
        traits: Traits | None = None,
        to_other_gpu: bool = False,
    ) -> Assessment:
        """Tell whether the tree below process `root` can be suspended; changes nothing.

        Raises
        ------
        CheckpointFailedError
            If the driver does not answer.
        """
        kernel = self._kernel(kernel_id)
        look = await kernel.look(root)
        gpus: dict[str, int] = {}
        for process in look.processes:
            for uuid, size in look.gpus_of(process.pid).items():
                gpus[uuid] = gpus.get(uuid, 0) + size
        refusal = refuse_suspend(look, kernel.record, traits or Traits(), to_other_gpu=to_other_gpu)
        return Assessment(refusal, sum(gpus.values()), gpus, look.driver_version, look.way_version)

    async def state(self, kernel_id: str, root: int) -> dict[int, ProcessState]:
        """Return what the driver says of each CUDA process of the tree below `root`.

        Raises
        ------
        CheckpointFailedError
            If the driver does not answer.
        """
        look = await self._kernel(kernel_id).look(root)
        return {process.pid: process.state for process in look.processes}

    async def suspend(
        self,
        kernel_id: str,
        root: int,
        *,
        lock_timeout_s: float = 10.0,
        traits: Traits | None = None,
        to_other_gpu: bool = False,
    ) -> Outcome:
        """Take all CUDA processes below `root` off their GPUs, also in the middle of a cell.

        Parameters
        ----------
        root
            The kernel's process.
        lock_timeout_s
            How long to wait until the work that was launched has come to a stop. Kernels that run
            longer make it time out; nothing is changed then.
        traits
            What the kernel's agent knows of its memory.
        to_other_gpu
            Whether it is to come back on another GPU; what stands against that is told now.

        Raises
        ------
        CheckpointRefusedError
            If it was not begun, or was undone wholly; the kernel runs as before.
        CheckpointFailedError
            If it could not be undone either; the record says what may be held.
        """
        kernel = self._kernel(kernel_id)
        return await self._go_on(
            kernel,
            lambda: kernel.suspend(
                root, lock_timeout_s, traits or Traits(), to_other_gpu=to_other_gpu
            ),
        )

    async def resume(self, kernel_id: str, *, gpu_map: Mapping[str, str] | None = None) -> Outcome:
        """Bring a suspended kernel's memory back and let it go on.

        Parameters
        ----------
        gpu_map
            Which GPU's memory is to come back on which other one of the same chip, by uuid; it is
            completed to the map of all GPUs that the driver wants.

        Raises
        ------
        CheckpointRefusedError
            If it was not begun; the kernel stays suspended.
        CheckpointFailedError
            If it failed; the record says whether the kernel is wholly suspended as before.
        """
        kernel = self._kernel(kernel_id)
        return await self._go_on(kernel, lambda: kernel.resume(gpu_map))

    async def recover(self, kernel_id: str) -> CheckpointRecord:
        """Complete or undo what was cut short, and return the record afterwards.

        Raises
        ------
        CheckpointRefusedError, CheckpointFailedError
            If neither is possible now.
        """
        kernel = self._kernel(kernel_id)
        return await self._go_on(kernel, kernel.recover)

    def _kernel(self, kernel_id: str) -> KernelCheckpoint:
        if kernel_id not in self._kernels:
            record = CheckpointRecord(kernel_id)
            self._kernels[kernel_id] = KernelCheckpoint(record, self._means, self._keep)
        return self._kernels[kernel_id]

    async def _go_on(self, kernel: KernelCheckpoint, operation: Callable[[], Awaitable[T]]) -> T:
        """Carry out an operation in its turn and to its end, even if nobody waits for it."""

        async def in_turn() -> T:
            async with kernel.lock:
                return await operation()

        task = asyncio.ensure_future(in_turn())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)
