"""What the loop keeps about each kernel; mutable, and touched by the event loop only."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from ..core.forecast.live import LiveScores
from ..core.model import CellRun, DemandSample, Forecast
from .bursts import Burst
from .ports import KernelPort

DUTY_WINDOW_S = 600.0

GRANT_S = 60.0
"""How long a granted cell may take to bring its state back before it begins."""

KEEP_RETRY_S = 5.0
"""How long a kernel that refused to give its memory back is left alone."""

RESUME_RETRY_S = 2.0
"""How long after a failed resume the next one of the same kernel may start; doubles."""

RESUME_RETRY_LIMIT_S = 60.0

LONG_S = 1.0
"""Durations are remembered from here on: shorter cells are never worth a snapshot."""


@dataclass(frozen=True)
class Decision:
    """What was decided about a kernel, and why."""

    t_s: float
    action: str
    reason: str


@dataclass
class KernelRecord:
    """One kernel as the loop knows it."""

    kernel_id: str
    kernel_name: str
    notebook: str | None
    port: KernelPort
    started_s: float
    ready: bool = False
    gpu_uuid: str | None = None
    used_bytes: int = 0
    suspended_bytes: int = 0
    running_since_s: float | None = None
    running_digest: str | None = None
    last_used_s: float = 0.0
    granted_s: float | None = None
    overdrawn: bool = False
    measured_s: float = 0.0
    pinned: bool = False
    priority: int = 0
    queued_runs: int = 0
    queued_cells: tuple[tuple[str | None, str], ...] = ()
    """Cells of execute requests without an answer, as id and digest; a running one is the first."""
    scores: LiveScores = field(default_factory=LiveScores)
    keep_reason: str | None = None
    keep_until_s: float = 0.0
    forecast: Forecast | None = None
    last_snapshot_s: float | None = None
    changed_s: float | None = None
    failed_saves: int = 0
    no_save_before_s: float = 0.0
    durations: dict[str, float] = field(default_factory=dict)
    working: str | None = None
    failed_moves: int = 0
    no_move_before_s: float = 0.0
    target_gpu_uuid: str | None = None
    target_bytes: int = 0
    prebound: Literal["restored", "reserved"] | None = None
    kept: list[tuple[str, int]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    claimed_s: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    """When cells of this kernel asked for GPU memory; they may have begun much later, or never."""
    runs: deque[CellRun] = field(default_factory=lambda: deque(maxlen=500))
    samples: deque[DemandSample] = field(default_factory=lambda: deque(maxlen=2000))
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=100))
    next_forecast_s: float = 0.0
    process_bytes: dict[str, int] = field(default_factory=dict)
    """What NVML shows for its processes by GPU, whatever the bytes are for."""
    gpu_processes: int = 0
    shell_busy_s: float | None = None
    """Since when Jupyter has seen it at work on any message."""
    unanswered_s: float | None = None
    """Since when it owes an answer to a cell; once the driver has it, to one sent after that."""
    checkpointed: bool = False
    """Whether the driver holds it."""
    switches: int = 0
    """How often the driver has taken it or brought it back."""
    used_before: tuple[int, int] | None = None
    """`used_bytes` and `suspended_bytes` before the driver took it, if that is known."""
    preempted_s: float | None = None
    switched_s: float = 0.0
    burst: Burst = field(default_factory=Burst)
    failed_resumes: int = 0
    no_resume_before_s: float = 0.0
    held_since_s: float = 0.0
    """Since when the driver has had it, if it has it."""
    claim_priority: int | None = None
    """What its running cell's own claim said."""
    limit_bytes: int | None = None
    """What its process may have of a GPU at most (MPS)."""

    @property
    def busy(self) -> bool:
        """Whether a cell runs."""
        return self.running_since_s is not None

    @property
    def present_priority(self) -> int:
        """Its priority while the cell runs, or is halted, that it has claimed for."""
        claimed = self.claim_priority
        return self.priority if claimed is None else max(self.priority, claimed)

    def about_to_run(self, now_s: float) -> bool:
        """Whether a cell was just granted its claim and has not yet said that it runs."""
        return self.granted_s is not None and now_s - self.granted_s < GRANT_S

    def keeps(self, now_s: float) -> str | None:
        """Why the kernel's memory must not be taken now."""
        return self.keep_reason if now_s < self.keep_until_s else None

    def keep(self, reason: str, now_s: float) -> None:
        """Leave the kernel's memory alone for a while."""
        self.keep_reason, self.keep_until_s = reason, now_s + KEEP_RETRY_S

    def held_by_driver(self, freed_bytes: int, left_bytes: int, now_s: float) -> None:
        """Note that the driver took the kernel off its GPU."""
        self.held_since_s = now_s
        self.used_before = self.used_bytes, self.suspended_bytes
        self.checkpointed = True
        self.switches += 1
        self.used_bytes, self.suspended_bytes = left_bytes, freed_bytes

    def given_back(self, brought_bytes: int) -> None:
        """Note that the driver has brought the kernel back."""
        self.used_bytes, self.suspended_bytes = self.used_before or (brought_bytes, 0)
        self.checkpointed, self.used_before = False, None
        self.switches += 1
        self.failed_resumes, self.no_resume_before_s = 0, 0.0

    def unanswered(self, cells: int, now_s: float) -> bool:
        """Note how many cells it has not answered; return whether that calls for a decision."""
        before, self.queued_runs = self.queued_runs, max(0, cells - 1)
        if not cells:
            self.unanswered_s = None
        elif self.queued_runs >= before and (self.unanswered_s or 0.0) <= self.held_since_s:
            self.unanswered_s = now_s
        return self.queued_runs > before or (cells > 0 and self.checkpointed)

    def resume_failed(self, now_s: float) -> None:
        """Leave the kernel with the driver for a while."""
        pause_s = RESUME_RETRY_S * 2 ** min(self.failed_resumes, 16)
        self.no_resume_before_s = now_s + min(RESUME_RETRY_LIMIT_S, pause_s)
        self.failed_resumes += 1

    def lasted(self, run: CellRun) -> None:
        """Remember how long a cell takes; the longest run counts, and less with each later one."""
        lasted_s = run.end_s - run.start_s
        if lasted_s >= LONG_S:
            usual_s = self.durations.get(run.digest, 0.0) / 2
            self.durations[run.digest] = max(usual_s, lasted_s)

    def saved(self, now_s: float) -> None:
        """Note that a snapshot holds the kernel's state as it was at `now_s`."""
        self.last_snapshot_s = now_s
        if self.changed_s is not None and self.changed_s <= now_s:
            self.changed_s = None

    def decided(self, t_s: float, action: str, reason: str) -> None:
        """Remember a decision for `%gpu why`."""
        if not self.decisions or self.decisions[-1].reason != reason:
            self.decisions.append(Decision(t_s, action, reason))

    def duty(self, now_s: float) -> float | None:
        """Return the share of the last ten minutes in which the kernel kept its GPU busy.

        ``None`` while the kernel has run nothing: then nothing is known.
        """
        if not self.runs:
            return None
        since_s = max(self.started_s, now_s - DUTY_WINDOW_S)
        busy_s = sum(
            min(r.busy_s, r.end_s - max(r.start_s, since_s)) for r in self.runs if r.end_s > since_s
        )
        return min(1.0, max(0.0, busy_s / max(1.0, now_s - since_s)))

    def usual_duration_s(self, digest: str | None) -> float | None:
        """Return the median duration of earlier runs of the cell, ``None`` if it never ran."""
        durations = sorted(r.end_s - r.start_s for r in self.runs if r.digest == digest)
        return durations[len(durations) // 2] if durations else None
