"""The words of the project: plain frozen data that :func:`dataclasses.asdict` takes to JSON.

Units stand in the names: ``_bytes``, ``_s`` (seconds; a point in time is since the Unix epoch).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# ruff: noqa: PLC0414 - the words of a forecast are words of this module too
from .outlook import HORIZONS_S as HORIZONS_S
from .outlook import Backtest as Backtest
from .outlook import Forecast as Forecast
from .outlook import HorizonForecast as HorizonForecast
from .outlook import NeedForecast as NeedForecast
from .outlook import NextCell as NextCell
from .outlook import Quantiles as Quantiles

MIB = 1 << 20
GIB = 1 << 30

STEP_S = 5
"""Grain of a demand series in seconds."""


class Outcome(str, Enum):
    """How a cell run ended."""

    OK = "ok"
    ERROR = "error"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"


class LeaseState(str, Enum):
    """State of a lease; `RELEASED` is final."""

    RESERVED = "reserved"
    BOUND = "bound"
    SUSPENDED = "suspended"
    MIGRATING = "migrating"
    RELEASED = "released"


class RiskLevel(str, Enum):
    """How likely a GPU is to fail soon; only `CRITICAL` moves kernels."""

    NONE = "none"
    WARNING = "warning"
    CRITICAL = "critical"


class Rung(str, Enum):
    """Rungs of the reclaim and migration ladder, cheapest first."""

    IN_PLACE = "in_place"
    DRIVER_CHECKPOINT = "driver_checkpoint"
    RELAUNCH = "relaunch"


@dataclass(frozen=True, slots=True)
class CellRun:
    """One execution of a cell.

    `peak_bytes` and `end_bytes` are device memory; `peak_source` names how the peak was measured
    (``"torch.cuda"``, ``"storages+VmHWM"``, ``"nvml"``, ``"none"``). `host_peak_bytes` is the
    process's peak resident memory during the run. `digest` is the hex digest of the source.
    """

    kernel_id: str
    notebook: str | None
    cell_id: str | None
    digest: str
    start_s: float
    end_s: float
    peak_bytes: int
    end_bytes: int
    peak_source: str
    host_peak_bytes: int
    busy_s: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DemandSample:
    """What a kernel holds of a GPU at one moment."""

    kernel_id: str
    t_s: float
    used_bytes: int
    suspended_bytes: int
    busy: bool


@dataclass(frozen=True, slots=True)
class XidEvent:
    """A critical error the NVIDIA driver reported for a GPU (XID catalogue of NVIDIA)."""

    code: int
    t_s: float


@dataclass(frozen=True, slots=True)
class GpuHealth:
    """Health signals of one GPU; ``None`` is "the device does not say".

    ECC counts are volatile counts (since the driver was loaded). `query_s` is how long the health
    query took, in seconds. `temperature_limit_c` is the slowdown threshold.
    """

    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    ecc_uncontained: int | None = None
    remapped_rows: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages: int | None = None
    xids: tuple[XidEvent, ...] = ()
    recovery_action: str | None = None
    thermal_slowdown: bool | None = None
    power_brake: bool | None = None
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    pcie_replays: int | None = None
    query_s: float | None = None


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU as its backend reports it.

    `processes` are ``(pid, bytes)``; `problems` are plain sentences about values that could not be
    read. `lost` is a GPU that no longer answers at all. `energy_j` is the energy it has used since
    its driver was loaded, in joules (NVML's counter), ``None`` where it does not say.

    `parent` is the uuid of the GPU that this is a MIG slice of; a slice has its parent's index, and
    its health, power and energy are the parent's. `mps`: processes share it through the MPS server.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int
    simulated: bool
    used_bytes: int | None = None
    utilization: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    processes: tuple[tuple[int, int], ...] = ()
    health: GpuHealth = GpuHealth()
    lost: bool = False
    problems: tuple[str, ...] = ()
    parent: str | None = None
    mps: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a kernel asks for.

    `bytes` is the total device memory the kernel wants to be able to hold, not what it wants on
    top. `priority` is higher-first (low -1, normal 0, high 1). `affinity` is a GPU uuid or a part
    of a GPU name, ``None`` for any. `deadline_s` is a point in time, ``inf`` where there is none.
    `origin` is ``"launch"``, ``"magic"``, ``"rest"``, ``"cell"`` (one waits), ``"preempted"`` (one
    was suspended in its middle) or ``"growth"`` (one runs: granted at once or refused).
    """

    claim_id: str
    kernel_id: str
    bytes: int
    made_s: float
    deadline_s: float
    priority: int = 0
    affinity: str | None = None
    critical: bool = False
    origin: str = "cell"


@dataclass(frozen=True, slots=True)
class Lease:
    """A share of one GPU granted to one kernel.

    `bytes` is what is set aside; `resident_bytes` is what stays on the GPU while suspended (what
    could not be taken back). `epoch` is a fencing number that only grows. `expires_s` is the end of
    the grace period of a reservation, ``None`` for a lease in use.
    """

    kernel_id: str
    gpu_uuid: str
    bytes: int
    state: LeaseState
    epoch: int
    since_s: float
    expires_s: float | None = None
    resident_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the GPU that nobody else can have because of this lease."""
        if self.state is LeaseState.RELEASED:
            return 0
        return self.resident_bytes if self.state is LeaseState.SUSPENDED else self.bytes


@dataclass(frozen=True, slots=True)
class GpuView:
    """A GPU as a decision sees it; `foreign_bytes` is memory of processes that hold no lease.

    A `whole` one (a MIG slice) is leased to one kernel at a time, with all that it has.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int
    foreign_bytes: int = 0
    cordoned: bool = False
    lost: bool = False
    risk: RiskLevel = RiskLevel.NONE
    whole: bool = False


@dataclass(frozen=True, slots=True)
class KernelView:
    """A kernel as a decision sees it.

    `used_bytes` is device memory in use now, `suspended_bytes` what was taken back and waits in
    host memory. `busy` means a cell runs (or waits for its claim: see `waiting`). `last_used_s` is
    the end of its last cell run. `restore_cost_s` is the measured or estimated time to bring
    `suspended_bytes` (or, while bound, `used_bytes`) back. `queued_runs` counts execute requests
    already sent and not yet answered beyond the running one. `keep_reason` names why the kernel's
    agent must not suspend it now (``None`` if it may). `has_agent` is false for kernels that only
    the driver can see. While `migrating`, `target_bytes` are set aside for it on
    `target_gpu_uuid`. `movable` says that a claim of this kernel may be granted on another GPU by
    moving its state there first, also while a cell waits in it. `age_s` is how long the kernel
    has run, in seconds. `changed_s` is the end of the latest cell run that no snapshot holds yet,
    ``None`` if there is none; `savable` says that a snapshot may be begun now.

    `suspend_by` is the cheapest rung by which it can be suspended between its cells now, ``None``
    if by none; `suspend_why` says how it was chosen. `why_not_preempt` names why its running cell
    cannot be suspended, ``None`` if it can. `checkpointed`: its suspended state is with the driver.

    A burst is a sequence of cell runs with gaps below 60 s. `attained_s` is the GPU time that the
    present one has had, but while suspended; `switched_s` when it was last suspended or resumed in
    its middle (0: never), `preempted_s` since when it is (``None``: it is not). It is not brought
    back before `no_resume_before_s`. `limit_bytes` is what its process may have at most (MPS).
    """

    kernel_id: str
    lease: Lease | None
    used_bytes: int = 0
    suspended_bytes: int = 0
    busy: bool = False
    waiting: bool = False
    started_s: float | None = None
    expected_end_s: float | None = None
    last_used_s: float = 0.0
    queued_runs: int = 0
    pinned: bool = False
    priority: int = 0
    restore_cost_s: float = 0.0
    keep_reason: str | None = None
    has_agent: bool = True
    migrating: bool = False
    forecast: Forecast | None = None
    duty: float | None = None
    last_snapshot_s: float | None = None
    movable: bool = False
    target_gpu_uuid: str | None = None
    target_bytes: int = 0
    age_s: float = 0.0
    changed_s: float | None = None
    savable: bool = True
    suspend_by: Rung | None = Rung.IN_PLACE
    suspend_why: str = ""
    why_not_preempt: str | None = (
        "the driver checkpoint in the middle of a cell is not proven on this machine"
    )
    attained_s: float = 0.0
    switched_s: float = 0.0
    checkpointed: bool = False
    preempted_s: float | None = None
    no_resume_before_s: float = 0.0
    limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Settings of the default policy; all of them are traits of the server extension.

    `max_moves` is how many kernels may be on their way off failing GPUs at once: each needs a
    process of its own and keeps memory of its target from others until it is there.

    `autosave_idle_s` is how long a kernel must have been idle after a change before it is saved,
    `autosave_long_s` the expected duration from which a cell is preceded by a snapshot; 0 turns
    either off. Of automatic snapshots `autosave_keep` stay per notebook; together they hold at most
    `autosave_bytes` that no other snapshot holds.

    With `preempt`, a running burst may be suspended in its middle for one that has had less of a
    GPU, `preempt_factor` times, and `preempt_min_s` after its last switch at the earliest. Who has
    waited `preempt_age_s` goes first. `consolidate` keeps empty GPUs empty where it costs nothing.
    """

    grace_period_s: float = 0.0
    reservation_s: float = 30.0
    prebind: bool = True
    prebind_horizon_s: float = 15.0
    prebind_threshold: float = 0.5
    max_duty: float = 0.9
    max_moves: int = 4
    headroom_bytes: int = 0
    snapshot_interval_s: float = 300.0
    autosave: bool = True
    autosave_idle_s: float = 600.0
    autosave_long_s: float = 300.0
    autosave_keep: int = 3
    autosave_bytes: int = 20 * GIB
    preempt: bool = False
    preempt_min_s: float = 60.0
    preempt_factor: float = 2.0
    preempt_age_s: float = 1800.0
    consolidate: bool = False


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The picture a decision is made from."""

    now_s: float
    gpus: tuple[GpuView, ...]
    kernels: tuple[KernelView, ...]
    claims: tuple[Claim, ...] = ()
    settings: PolicySettings = PolicySettings()
