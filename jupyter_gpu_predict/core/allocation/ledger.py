"""The working picture while a plan is made: each action is booked when it is planned."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cached_property
from typing import Any

from ..model import Claim, ClusterView, GpuView, KernelView, LeaseState, Rung
from ..plans import Action, Bind, Migrate, Prebind, Queue, Reclaim, Release, Resize
from .entry import Entry
from .open_gpus import OpenGpus

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


CALM_S = 5.0
"""Seconds after its last cell, or its last switch, in which only a claim may take from a kernel."""


class Ledger:
    """GPUs and kernels as they will be once the actions planned so far are carried out."""

    def __init__(self, view: ClusterView) -> None:
        self.now_s = view.now_s
        self.settings = view.settings
        self.kernels = view.kernels
        self.gpus: dict[str, GpuView] = {g.uuid: g for g in view.gpus}
        self.free = {g.uuid: 0 if g.lost else g.total_bytes - g.foreign_bytes for g in view.gpus}
        """Free bytes, negative where more is held than there is; a lost GPU has nothing free."""
        self.arriving: dict[str, int] = dict.fromkeys(self.gpus, 0)
        self.leased: dict[str, dict[str, KernelView]] = {u: {} for u in self.gpus}
        """Kernels with a lease on each GPU, also on one that is gone, by id."""
        self.in_use: dict[str, dict[str, KernelView]] = {u: {} for u in self.gpus}
        """Those of them whose leases are in use; as for all, the last that came is the last."""
        self.grown: set[str] = set()
        """GPUs with a kernel that uses more than its lease."""
        self.reserved: list[KernelView] = []
        self.away: list[KernelView] = []
        """Kernels that hold nothing: without a lease, or suspended."""
        self.moves = 0
        """Moves that are under way or planned."""
        self.actions: list[Action] = []
        self.blocked: dict[str, Claim] = {}
        """GPUs whose memory a waiting claim has a first right to."""
        self.claimed: set[str | None] = set()
        """GPUs of kernels with an open claim."""
        self.gave_back = False
        """A grant has set less aside than its kernel held before, or elsewhere."""
        self.memo: dict[str, dict[Hashable, Any]] = {u: {} for u in self.gpus}
        """What has been worked out about each GPU; forgotten as soon as anything changes there."""
        self.changed: set[str] = set(self.gpus)
        """GPUs booked on since `OpenGpus` looked last."""
        self._entries: dict[str, Entry] = {}
        self._take_in(view.kernels)
        for gpu in view.gpus:
            if gpu.whole:
                self._fill(gpu.uuid)

    def _take_in(self, kernels: Iterable[KernelView]) -> None:
        free, leased, in_use, away = self.free, self.leased, self.in_use, self.away
        suspended, bound, reserved = LeaseState.SUSPENDED, LeaseState.BOUND, LeaseState.RESERVED
        for kernel in kernels:
            if kernel.target_gpu_uuid is not None:
                self._expect(kernel, kernel.target_gpu_uuid)
            lease = kernel.lease
            if lease is None or lease.state is LeaseState.RELEASED:
                away.append(kernel)
                continue
            uuid, state, size = lease.gpu_uuid, lease.state, lease.bytes
            if state is suspended:
                away.append(kernel)
                size = lease.resident_bytes
            else:
                if state is reserved:
                    self.reserved.append(kernel)
                if kernel.used_bytes > size:
                    size = kernel.used_bytes
                    if state is bound:
                        self.grown.add(uuid)
            if uuid in free:
                leased[uuid][kernel.kernel_id] = kernel
                free[uuid] -= size
                if state is bound or state is reserved:
                    in_use[uuid][kernel.kernel_id] = kernel
            else:
                leased.setdefault(uuid, {})[kernel.kernel_id] = kernel

    def _expect(self, kernel: KernelView, target: str) -> None:
        self.moves += 1
        if kernel.migrating and target in self.free:
            self.free[target] -= kernel.target_bytes
            self.arriving[target] += kernel.target_bytes

    @cached_property
    def _views(self) -> dict[str, KernelView]:
        return {k.kernel_id: k for k in self.kernels}

    @cached_property
    def open_gpus(self) -> OpenGpus:
        """The GPUs that take new leases, by what is free."""
        return OpenGpus(self)

    def known(self, kernel_id: str) -> Entry | None:
        """Return a kernel's entry if it has been looked at; else it is as the view has it."""
        return self._entries.get(kernel_id)

    def entry(self, kernel_id: str) -> Entry:
        """Return a kernel's entry; one that is still to be launched gets an empty one."""
        known = self._entries.get(kernel_id)
        return known or self.entry_of(self._views.get(kernel_id) or KernelView(kernel_id, None))

    def entry_of(self, kernel: KernelView) -> Entry:
        """Return the entry of a kernel of the view."""
        entry = self._entries.get(kernel.kernel_id)
        if entry is None:
            entry = self._entries[kernel.kernel_id] = Entry(kernel)
        return entry

    def on_gpu(self, uuid: str) -> list[Entry]:
        """Return the entries of the kernels with a lease on a GPU."""
        memo = self.memo[uuid]
        found: list[Entry] | None = memo.get("entries")
        if found is None:
            known = self._entries
            found = memo["entries"] = [
                known.get(i) or self.entry_of(k) for i, k in self.leased[uuid].items()
            ]
        return found

    def in_order(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return entries in the order of the view, those of kernels to be launched last."""
        found = {e.kernel_id: e for e in entries}
        if not found:
            return []
        ordered = [found.pop(k.kernel_id) for k in self.kernels if k.kernel_id in found]
        return ordered + [e for i, e in self._entries.items() if i in found]

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

    def is_calm(self, entry: Entry) -> bool:
        """Return whether a kernel is between bursts, and not just between two of its cells.

        A cell that waits need not ask; what is done ahead of need, or for order's sake, does.
        """
        return self.idle_s(entry) >= max(CALM_S, self.settings.grace_period_s)

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
        users = self.in_use[uuid]
        if claimant.kernel_id not in users:
            return claimant.kernel.duty + self.duty(uuid)
        others = (k.duty or 0.0 for i, k in users.items() if i != claimant.kernel_id)
        return claimant.kernel.duty + sum(others)

    def duty(self, uuid: str) -> float:
        """Return the sum of the known duties of the kernels that use a GPU."""
        memo = self.memo[uuid]
        duty: float | None = memo.get("duty")
        if duty is None:
            duty = memo["duty"] = sum([k.duty for k in self.in_use[uuid].values() if k.duty])
        return duty

    def is_empty(self, gpu: GpuView) -> bool:
        """Return whether nobody holds memory of a GPU that answers, or is about to."""
        all_free = self.free[gpu.uuid] == gpu.total_bytes - gpu.foreign_bytes
        return all_free and gpu.foreign_bytes <= _LITTLE * gpu.total_bytes

    def is_moving(self) -> bool:
        """Return whether a kernel is on its way to another GPU, or is planned to go, or waits."""
        return self.moves > 0 or any(isinstance(a, Queue) for a in self.actions)

    def can_reach(self, entry: Entry, gpu: GpuView) -> bool:
        """Return whether a kernel's state can be moved to a GPU at all.

        What the driver holds goes to a GPU of the same kind only.
        """
        own = self.gpu_of(entry)
        return not entry.kernel.checkpointed or (own is not None and own.name == gpu.name)

    def block(self, uuid: str, claim: Claim) -> None:
        """Give a claim that waits the first right to a GPU's memory, unless another has it."""
        if uuid not in self.blocked:
            self.blocked[uuid] = claim
            self.changed.add(uuid)

    def unblock(self) -> None:
        """Take all such rights back."""
        self.changed.update(self.blocked)
        self.blocked.clear()

    # ------------------------------------------------------------------ booking

    def _change(self, uuid: str | None) -> None:
        if uuid in self.gpus:
            self.memo[uuid].clear()
            self.changed.add(uuid)

    def _fill(self, uuid: str) -> None:
        """Book all that is left of a GPU that is not shared for the kernel that is using it."""
        users = [e for e in self.on_gpu(uuid) if e.held > 0 and e.state is not LeaseState.SUSPENDED]
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
        entry.suspended = 0
        entry.settled = True
        self.actions.append(Bind(entry.kernel_id, gpu.uuid, size, claim_id, reason))

    def prebind(self, entry: Entry, gpu: GpuView, size: int, reason: str) -> None:
        """Plan to bring state back, or to set memory aside, ahead of use."""
        size = self._share(gpu.uuid, entry.held if entry.gpu_uuid == gpu.uuid else 0, size)
        self._place(entry, gpu.uuid, size, LeaseState.RESERVED)
        entry.suspended = 0
        entry.settled = True
        self.actions.append(Prebind(entry.kernel_id, gpu.uuid, size, reason))

    def reclaim(
        self, entry: Entry, for_kernel_id: str | None, reason: str, *, mid_cell: bool = False
    ) -> None:
        """Plan to suspend a kernel by the rung its view names, or in the middle of its cell.

        What stays resident is only known afterwards.
        """
        self._set_held(entry, 0)
        self._put_out_of_use(entry)
        entry.state = LeaseState.SUSPENDED
        entry.suspended = entry.state_bytes
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
        self._take_off(entry)
        entry.gpu_uuid, entry.state, entry.settled = None, None, True
        self.actions.append(Release(entry.kernel_id, reason))

    def migrate(self, entry: Entry, gpu: GpuView, size: int, reason: str) -> None:
        """Plan a move; `size` is set aside on the target, and the source is held until the end."""
        size = self._share(gpu.uuid, 0, size)
        self.free[gpu.uuid] -= size
        self.arriving[gpu.uuid] += size
        self.moves += 1
        entry.moving = entry.settled = True
        self._change(entry.gpu_uuid)
        self._change(gpu.uuid)
        entry.target_uuid, entry.target_bytes = gpu.uuid, size
        rung = Rung.DRIVER_CHECKPOINT if entry.kernel.checkpointed else Rung.RELAUNCH
        self.actions.append(Migrate(entry.kernel_id, gpu.uuid, rung, reason, size))

    def _set_held(self, entry: Entry, size: int) -> None:
        if entry.gpu_uuid in self.free:
            self.free[entry.gpu_uuid] += entry.held - size
        entry.held = size
        self._change(entry.gpu_uuid)

    def _take_off(self, entry: Entry) -> None:
        if entry.gpu_uuid is not None:
            del self.leased[entry.gpu_uuid][entry.kernel_id]
            self._put_out_of_use(entry)

    def _put_out_of_use(self, entry: Entry) -> None:
        if entry.gpu_uuid in self.in_use:
            self.in_use[entry.gpu_uuid].pop(entry.kernel_id, None)

    def _place(self, entry: Entry, uuid: str, size: int, state: LeaseState) -> None:
        self._set_held(entry, 0)
        self._take_off(entry)
        entry.gpu_uuid, entry.state = uuid, state
        self.leased[uuid][entry.kernel_id] = entry.kernel
        self.in_use[uuid][entry.kernel_id] = entry.kernel
        self._set_held(entry, size)


def short(kernel_id: str) -> str:
    """Return a kernel's name for people: the start of its id."""
    return kernel_id[:8]


def names(entries: Iterable[Entry]) -> str:
    """Return the names of some kernels as a list in words."""
    return ", ".join(short(e.kernel_id) for e in entries)
