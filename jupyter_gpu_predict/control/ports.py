"""What the control loop needs from the outside, as Protocols.

The rooms above (`devices`, `store`, `server`) implement these; the loop imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..core.forecast.content import Situation
from ..core.model import MIB, CellRun, DemandSample, Forecast, GpuHealth, GpuStatus, Lease
from ..core.trace.document import Document
from .operations import Progress

RESUME_MARGIN_BYTES = 64 * MIB
"""What the driver may want beside the memory that comes back, on a GPU that others use too."""


class DeviceBackend(Protocol):
    """The GPUs of one machine; every method is quick enough to be called in a worker thread."""

    name: str
    """``"nvml"`` or ``"simulated"``."""

    simulated: bool

    torch_device: str
    """Type of torch device that the GPUs are in a kernel; ``"simulated"`` for simulated ones."""

    def read(self) -> tuple[GpuStatus, ...]:
        """Return the present state of every GPU, a lost one included; never raises."""

    def account(self, memory: Mapping[str, Mapping[int, int]]) -> None:
        """Take note of ``{gpu uuid: {pid: bytes}}`` as kernels report it (simulated GPUs only)."""

    def script_health(self, uuid: str, **changes: Any) -> GpuHealth:
        """Change a simulated GPU's health.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        ConflictError
            If the GPUs are real.
        """

    def environment(self, uuid: str, lease_bytes: int = 0) -> dict[str, str]:
        """Return the environment variables that bind a new process to GPU `uuid`.

        Where GPUs are shared through MPS they hold it to `lease_bytes` for its life; 0: to nothing.
        """

    def close(self) -> None:
        """Let the library go."""


class TraceStore(Protocol):
    """Traces, leases, events and operations that survive a restart of the server.

    Methods are synchronous and thread-safe; the loop calls them in a worker thread.
    """

    def together(self, work: Callable[[], None]) -> None:
        """Carry out all that `work` writes in this thread wholly or not at all."""

    def add_cell_run(self, run: CellRun) -> None:
        """Append a cell run."""

    def add_demand(self, samples: Sequence[DemandSample]) -> None:
        """Append demand samples."""

    def cell_runs(
        self,
        *,
        kernel_id: str | None = None,
        notebook: str | None = None,
        digests: Sequence[str] | None = None,
        limit: int = 500,
    ) -> list[CellRun]:
        """Return the latest cell runs that match, oldest first."""

    def demand(self, kernel_id: str, *, since_s: float) -> list[DemandSample]:
        """Return a kernel's demand samples, oldest first."""

    def save_lease(self, lease: Lease) -> None:
        """Insert or replace the lease of a kernel."""

    def leases(self) -> list[Lease]:
        """Return every lease that is not released."""

    def next_epoch(self) -> int:
        """Return a number greater than any it returned before, across restarts and processes."""

    def add_event(self, t_s: float, kind: str, data: Mapping[str, Any]) -> None:
        """Append to the event log."""

    def events(
        self,
        *,
        since_s: float = 0.0,
        kinds: Sequence[str] | None = None,
        kernel_id: str | None = None,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Return events ``{"t_s", "kind", **data}``, oldest first."""

    def save_bandwidths(self, host: str, data: Mapping[str, Any]) -> None:
        """Insert or replace how quick a host was seen to be."""

    def bandwidths(self, host: str) -> dict[str, Any]:
        """Return how quick a host was seen to be, empty if that is not known."""


class Forecasting(Protocol):
    """Forecasts made off the event loop."""

    async def refresh(  # noqa: PLR0917 - a forecast needs all of it
        self,
        kernel_id: str,
        samples: Sequence[DemandSample],
        runs: Sequence[CellRun],
        prior_runs: Sequence[CellRun],
        basis: str,
        now_s: float,
        situation: Situation | None = None,
    ) -> Forecast:
        """Fit, backtest and forecast one kernel's demand in the worker process."""

    def forget(self, kernel_id: str) -> None:
        """Drop what is kept about a kernel that is gone."""


@dataclass(frozen=True, slots=True)
class SavedNotebook:
    """A kernel's notebook as it was saved last.

    `lines` are the first lines of its code cells, `normalised` the normalised digest of each source
    that was in it since the kernel began.
    """

    document: Document = field(default_factory=Document)
    lines: Sequence[str] = ()
    normalised: Mapping[str, str] = field(default_factory=dict)


class Notebooks(Protocol):
    """The notebooks of this server's kernels."""

    async def saved(
        self, kernel_id: str, notebook: str | None, *, used_s: float, last_cell: str | None
    ) -> SavedNotebook:
        """Return a kernel's notebook, empty but for a note where it cannot be read.

        `used_s` is when the kernel was used last; of a notebook whose kernel is not used nothing
        new is read. `last_cell` is the id of the cell that ran last: a very long notebook is read
        around it.
        """

    def forget(self, kernel_id: str) -> None:
        """Drop what is kept about a kernel that is gone."""


class KernelPort(Protocol):
    """One running kernel, as the loop speaks to it.

    Each method raises a `KernelLinkError` when the kernel does not answer in time and the error
    the kernel named when it refuses.
    """

    has_agent: bool

    @property
    def pid(self) -> int | None:
        """Pid of the kernel's process."""

    async def bind(
        self,
        lease: Lease,
        *,
        cap_bytes: int | None,
        claim_id: str | None,
        restore: bool,
        peaks: Mapping[str, int],
        checkpointed: bool = False,
        warm: bool = False,
    ) -> dict[str, Any]:
        """Tell the kernel its lease; `claim_id` wakes that claim, `restore` brings state back.

        With `checkpointed` every cell has to claim from now on, for the driver takes the memory.
        With `warm` the kernel starts its GPU's context between cells.
        """

    async def cap(self, cap_bytes: int, timeout_s: float) -> dict[str, Any]:
        """Change what the kernel's allocator may take at most."""

    async def reclaim(self, epoch: int, *, wait: bool) -> dict[str, Any]:
        """Suspend in place; the answer has ``freed_bytes, suspended_bytes, resident_bytes``."""

    async def tell_queue(
        self, claim_id: str, position: int, expected_wait_s: float | None, reason: str
    ) -> dict[str, Any]:
        """Tell a waiting claim its place; the answer says whether it still ``waits``."""

    async def refuse(self, claim_id: str, reason: str) -> dict[str, Any]:
        """End a claim without a grant."""

    async def alive(self) -> bool:
        """Whether the kernel's process lives; never judged by how quick it answers."""

    def pids(self) -> tuple[int, ...]:
        """Return the pids of the kernel's process tree; it reads all of /proc."""


class Saves(Protocol):
    """Snapshots of kernels."""

    async def take_snapshot(
        self, kernel_id: str, name: str | None, reason: str, *, cause: str, progress: Progress
    ) -> dict[str, Any]:
        """Save the kernel's state between cells; it goes on while its state is written.

        `cause` is ``"asked"``, or why nobody had to ask: ``"idle"``, ``"long cell"``, ``"risk"``.
        """


class Moves(Protocol):
    """Kernels going to another process."""

    async def migrate(
        self,
        kernel_id: str,
        target_gpu_uuid: str,
        reason: str,
        *,
        wanted_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Move the kernel to another GPU by relaunch, under the same kernel id.

        `wanted_bytes` are set aside on the target; by default what the kernel uses now.
        """


@dataclass(frozen=True, slots=True)
class Suspended:
    """What the driver took off a GPU.

    `seconds` is the time in the driver, `overhead_s` what the operation took besides. `left_bytes`
    is what stayed on the GPU.
    """

    bytes: int
    seconds: float
    overhead_s: float = 0.0
    left_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Resumed:
    """What the driver brought back; times as in `Suspended`."""

    bytes: int
    seconds: float
    overhead_s: float = 0.0


class Checkpoints(Protocol):
    """Driver checkpoints: whole kernels taken off their GPU from outside (rung 2)."""

    def why_not(self, kernel_id: str, *, mid_cell: bool) -> str | None:
        """Return why the driver would not suspend the kernel now, by what is known; it is quick."""

    def why_not_move(self, kernel_id: str, target_uuid: str) -> str | None:
        """Return why the driver would not bring it back on another GPU of its kind."""

    async def suspend(
        self, kernel_id: str, root: int, *, mid_cell: bool, to_other_gpu: bool = False
    ) -> Suspended:
        """Take the processes below `root` off their GPUs.

        Raises
        ------
        CheckpointRefusedError
            If it was not begun, or was undone; the kernel goes on as before.
        CheckpointFailedError
            If the driver may still hold it.
        """

    async def resume(self, kernel_id: str, *, gpu_map: Mapping[str, str] | None = None) -> Resumed:
        """Bring a kernel back, on other GPUs where `gpu_map` says so.

        Raises
        ------
        CheckpointRefusedError, CheckpointFailedError
            If it did not come back; unless the message says otherwise it is suspended as before.
        """

    async def recover(self, kernel_ids: Sequence[str]) -> None:
        """Complete or undo what a crash cut short; what fails is tried again when it is needed."""

    def held(self, kernel_id: str) -> bool:
        """Whether the driver may be holding the kernel."""

    def suspended(self, kernel_id: str) -> bool:
        """Whether the kernel is wholly suspended, by the last that was seen."""

    def gpus(self, kernel_id: str) -> Mapping[str, int]:
        """Return what a held kernel had on each GPU, in bytes."""

    def in_mid_cell(self, kernel_id: str) -> bool:
        """Whether a held kernel was suspended in the middle of a cell."""

    def forget(self, kernel_id: str) -> None:
        """Drop what is known of a kernel that has ended."""
