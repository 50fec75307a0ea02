"""The working picture while a plan is made: each action is booked when it is planned."""

from __future__ import annotations

from collections.abc import Iterable

from ..model import Claim, ClusterView, GpuView, KernelView, LeaseState, Rung
from ..plans import Action, Bind, Migrate, Prebind, Queue, Reclaim, Release, Resize
from .capacity import Fit, free_bytes, held_bytes, state_bytes

_IN_USE = (LeaseState.BOUND, LeaseState.RESERVED)

_LITTLE = 0.05
"""Share of a GPU's memory up to which what is not ours says nothing: the driver's own, a display"""

# P(next burst within 60 s | idle for so many seconds), from the Adobe June 2021 bursts. Used for a
# kernel without a forecast; generous for shorter horizons, so such a kernel is not robbed lightly.
_IDLE_HAZARD = (
    (60.0, 0.44),
    (120.0, 0.32),
    (300.0, 0.29),
    (600.0, 0.17),
    (1200.0, 0.09),
    (3600.0, 0.03),
)
_IDLE_HAZARD_LATE = 0.001


class Entry:
    """A kernel in the working picture; the view it came from stays as it was."""

    __slots__ = (
        "claim_order",
        "gpu_uuid",
        "held",
        "idle_since_s",
        "kernel",
        "moving",
        "settled",
        "state",
        "suspended",
        "target_bytes",
        "target_uuid",
        "used",
    )

    def __init__(self, kernel: KernelView) -> None:
        lease = kernel.lease
        if lease is not None and lease.state is LeaseState.RELEASED:
            lease = None
        self.kernel = kernel
        self.gpu_uuid = None if lease is None else lease.gpu_uuid
        self.state = None if lease is None else lease.state
        self.held = held_bytes(kernel)
        self.suspended = kernel.suspended_bytes
        self.used = state_bytes(kernel) - kernel.suspended_bytes
        self.moving = kernel.migrating or self.state is LeaseState.MIGRATING
        self.target_uuid = kernel.target_gpu_uuid
        self.target_bytes = kernel.target_bytes
        # What was bound ahead of use counts as fresh from then on, or it would be taken back at
        # once and brought back again.
        fresh = lease is not None and lease.state in _IN_USE
        self.idle_since_s = max(kernel.last_used_s, lease.since_s if lease and fresh else 0.0)
        self.settled = False
        """The plan has decided about this kernel: nothing more is taken from it."""
        self.claim_order: int | None = None
        """Place of the kernel's first claim in the order of claims."""

    @property
    def kernel_id(self) -> str:
        """The kernel's id."""
        return self.kernel.kernel_id

    @property
    def state_bytes(self) -> int:
        """Device state of the kernel, on the GPU and taken back together."""
        return self.used + self.suspended

    @property
    def running(self) -> bool:
        """Whether a cell runs (a cell that waits for its claim has not started)."""
        return self.kernel.busy and not self.kernel.waiting

    @property
    def idle(self) -> bool:
        """Whether no cell runs or waits and no claim is open."""
        return not (self.kernel.busy or self.kernel.waiting or self.claim_order is not None)

    @property
    def tied_to(self) -> str | None:
        """The GPU that the kernel's state ties it to, ``None`` for a kernel without device state.

        Until a process has used the device it can be bound anywhere. What is with the driver goes
        back to where it came from, however little it is.
        """
        return self.gpu_uuid if self.state_bytes > 0 or self.frozen else None

    @property
    def frozen(self) -> bool:
        """Whether the driver holds the kernel's state: its process cannot be asked for anything."""
        return self.kernel.checkpointed or self.kernel.preempted_s is not None


class Ledger:
    """GPUs and kernels as they will be once the actions planned so far are carried out."""

    def __init__(self, view: ClusterView) -> None:
        self.now_s = view.now_s
        self.settings = view.settings
        self.gpus: dict[str, GpuView] = {g.uuid: g for g in view.gpus}
        self.free = free_bytes(view)
        self.entries = {k.kernel_id: Entry(k) for k in view.kernels}
        self.on_gpu: dict[str, dict[str, Entry]] = {u: {} for u in self.gpus}
        self.arriving: dict[str, int] = dict.fromkeys(self.gpus, 0)
        self.actions: list[Action] = []
        self.blocked: dict[str, Claim] = {}
        """GPUs whose memory a waiting claim has a first right to."""
        self.gave_back = False
        """A grant has set less aside than its kernel held before, or elsewhere."""
        for entry in self.entries.values():
            if entry.gpu_uuid in self.on_gpu:
                self.on_gpu[entry.gpu_uuid][entry.kernel_id] = entry
            kernel = entry.kernel
            if kernel.migrating and kernel.target_gpu_uuid in self.arriving:
                self.arriving[kernel.target_gpu_uuid] += kernel.target_bytes
        for gpu in self.gpus.values():
            if gpu.whole:
                self._fill(gpu.uuid)

    def entry(self, kernel_id: str) -> Entry:
        """Return a kernel's entry; one that is still to be launched gets an empty one."""
        if kernel_id not in self.entries:
            self.entries[kernel_id] = Entry(KernelView(kernel_id, None))
        return self.entries[kernel_id]

    def gpu_of(self, entry: Entry) -> GpuView | None:
        """Return the GPU of an entry's lease; one that is no longer in the view counts as lost."""
        if entry.gpu_uuid is None:
            return None
        known = self.gpus.get(entry.gpu_uuid)
        return known or GpuView(entry.gpu_uuid, -1, "a GPU that is gone", 0, lost=True)

    def idle_s(self, entry: Entry) -> float:
        """Return for how long a kernel has been idle."""
        return max(0.0, self.now_s - entry.idle_since_s)

    def in_grace(self, entry: Entry) -> bool:
        """Return whether an idle binding or a reservation is still left alone."""
        return self.idle_s(entry) < self.settings.grace_period_s

    def need_probability(self, entry: Entry) -> float:
        """Return P(the kernel needs its GPU within the pre-bind horizon)."""
        if entry.kernel.queued_runs > 0 or not entry.idle:
            return 1.0
        if entry.kernel.forecast is not None:
            return entry.kernel.forecast.need_probability(self.settings.prebind_horizon_s)
        if entry.kernel.last_used_s <= 0.0:
            return _IDLE_HAZARD_LATE
        idle_s = self.now_s - entry.kernel.last_used_s
        return next((p for until, p in _IDLE_HAZARD if idle_s < until), _IDLE_HAZARD_LATE)

    def duty_sum(self, uuid: str, claimant: Entry) -> float | None:
        """Return the known duties on a GPU with the claimant's, ``None`` if that is unknown."""
        if claimant.kernel.duty is None:
            return None
        others = (
            e.kernel.duty or 0.0
            for e in self.on_gpu[uuid].values()
            if e is not claimant and e.state in _IN_USE
        )
        return claimant.kernel.duty + sum(others)

    def fit(self, gpu: GpuView, free_after_bytes: int, entry: Entry) -> Fit:
        """Return how a GPU with enough free memory suits a kernel."""
        duty = self.duty_sum(gpu.uuid, entry)
        wakes = self.settings.consolidate and self.is_empty(gpu)
        return Fit(gpu, free_after_bytes, duty, gpu.uuid == entry.gpu_uuid, wakes)

    def is_empty(self, gpu: GpuView) -> bool:
        """Return whether nobody holds memory of a GPU, or is about to."""
        ours = self.arriving[gpu.uuid] + sum(e.held for e in self.on_gpu[gpu.uuid].values())
        return ours == 0 and gpu.foreign_bytes <= _LITTLE * gpu.total_bytes

    def is_moving(self) -> bool:
        """Return whether a kernel is on its way to another GPU, or is planned to go, or waits."""
        return any(e.kernel.target_gpu_uuid is not None for e in self.entries.values()) or any(
            isinstance(a, Migrate | Queue) for a in self.actions
        )

    def can_reach(self, entry: Entry, gpu: GpuView) -> bool:
        """Return whether a kernel's state can be moved to a GPU at all.

        What the driver holds goes to a GPU of the same kind only.
        """
        own = self.gpu_of(entry)
        return not entry.kernel.checkpointed or (own is not None and own.name == gpu.name)

    # ------------------------------------------------------------------ booking

    def _fill(self, uuid: str) -> None:
        """Book all that is left of a GPU that is not shared for the kernel that is using it."""
        users = [
            e
            for e in self.on_gpu[uuid].values()
            if e.held > 0 and e.state is not LeaseState.SUSPENDED
        ]
        if users or self.arriving[uuid]:
            spare, self.free[uuid] = max(0, self.free[uuid]), min(0, self.free[uuid])
            if users:
                users[0].held += spare

    def _share(self, uuid: str, own: int, size: int) -> int:
        """Return what a lease of `size` bytes takes: all that is left of a GPU not shared."""
        gpu = self.gpus.get(uuid)
        whole = gpu is not None and gpu.whole and size > 0
        return max(size, own + self.free[uuid]) if whole else size

    def bind(self, entry: Entry, gpu: GpuView, size: int, claim_id: str, reason: str) -> None:
        """Plan a grant and book it."""
        size = self._share(gpu.uuid, entry.held if entry.gpu_uuid == gpu.uuid else 0, size)
        if entry.held > (size if entry.gpu_uuid == gpu.uuid else 0):
            self.gave_back = True
        self._place(entry, gpu.uuid, size, LeaseState.BOUND)
        entry.used, entry.suspended = entry.state_bytes, 0
        entry.settled = True
        self.actions.append(Bind(entry.kernel_id, gpu.uuid, size, claim_id, reason))

    def prebind(self, entry: Entry, gpu: GpuView, size: int, reason: str) -> None:
        """Plan to bring state back, or to set memory aside, ahead of use."""
        size = self._share(gpu.uuid, entry.held if entry.gpu_uuid == gpu.uuid else 0, size)
        self._place(entry, gpu.uuid, size, LeaseState.RESERVED)
        entry.used, entry.suspended = entry.state_bytes, 0
        entry.settled = True
        self.actions.append(Prebind(entry.kernel_id, gpu.uuid, size, reason))

    def reclaim(
        self, entry: Entry, for_kernel_id: str | None, reason: str, *, mid_cell: bool = False
    ) -> None:
        """Plan to suspend a kernel by the rung its view names, or in the middle of its cell.

        What stays resident is only known afterwards.
        """
        self._set_held(entry, 0)
        entry.state = LeaseState.SUSPENDED
        entry.used, entry.suspended = 0, entry.state_bytes
        entry.settled = True
        rung, how = entry.kernel.suspend_by or Rung.IN_PLACE, entry.kernel.suspend_why
        if mid_cell:
            rung, how = Rung.DRIVER_CHECKPOINT, "by driver checkpoint, in the middle of its cell"
        why = f"{reason}; {how}" if how else reason
        self.actions.append(Reclaim(entry.kernel_id, rung, for_kernel_id, why, mid_cell))

    def resize(self, entry: Entry, size: int, reason: str) -> None:
        """Plan another size for a lease in use."""
        size = self._share(entry.gpu_uuid or "", entry.held, size)
        self._set_held(entry, size)
        self.actions.append(Resize(entry.kernel_id, size, reason))

    def release(self, entry: Entry, reason: str) -> None:
        """Plan the end of a lease that holds no state."""
        self._set_held(entry, 0)
        if entry.gpu_uuid in self.on_gpu:
            del self.on_gpu[entry.gpu_uuid][entry.kernel_id]
        entry.gpu_uuid, entry.state, entry.settled = None, None, True
        self.actions.append(Release(entry.kernel_id, reason))

    def migrate(self, entry: Entry, gpu: GpuView, size: int, reason: str) -> None:
        """Plan a move; `size` is set aside on the target, and the source is held until the end."""
        size = self._share(gpu.uuid, 0, size)
        self.free[gpu.uuid] -= size
        self.arriving[gpu.uuid] += size
        entry.moving = entry.settled = True
        entry.target_uuid, entry.target_bytes = gpu.uuid, size
        rung = Rung.DRIVER_CHECKPOINT if entry.kernel.checkpointed else Rung.RELAUNCH
        self.actions.append(Migrate(entry.kernel_id, gpu.uuid, rung, reason, size))

    def _set_held(self, entry: Entry, size: int) -> None:
        if entry.gpu_uuid in self.free:
            self.free[entry.gpu_uuid] += entry.held - size
        entry.held = size

    def _place(self, entry: Entry, uuid: str, size: int, state: LeaseState) -> None:
        self._set_held(entry, 0)
        if entry.gpu_uuid in self.on_gpu:
            self.on_gpu[entry.gpu_uuid].pop(entry.kernel_id, None)
        entry.gpu_uuid, entry.state = uuid, state
        self.on_gpu[uuid][entry.kernel_id] = entry
        self._set_held(entry, size)


def short(kernel_id: str) -> str:
    """Return a kernel's name for people: the start of its id."""
    return kernel_id[:8]


def names(entries: Iterable[Entry]) -> str:
    """Return the names of some kernels as a list in words."""
    return ", ".join(short(e.kernel_id) for e in entries)
