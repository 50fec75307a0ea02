"""Builders for views, and a little pure cluster that carries plans out and watches the rules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from jupyter_gpu_predict.core.allocation.lease import LeaseEvent, advance, open_lease, resize
from jupyter_gpu_predict.core.allocation.policy import decide
from jupyter_gpu_predict.core.model import (
    MIB,
    Claim,
    ClusterView,
    Forecast,
    GpuView,
    HorizonForecast,
    KernelView,
    Lease,
    LeaseState,
    PolicySettings,
    Quantiles,
    RiskLevel,
    Rung,
)
from jupyter_gpu_predict.core.plans import (
    Bind,
    Cordon,
    Migrate,
    Plan,
    Prebind,
    Queue,
    Reclaim,
    Refuse,
    Release,
    Resize,
    TakeSnapshot,
)

NOW = 1_000.0

PATIENT = {"grace_period_s": 5.0, "preempt_age_s": 120.0}
"""Settings of a view: bounds that a test can come to in a few steps."""


def gpu(index: int, total: int = 512, **changes) -> GpuView:
    return GpuView(f"G{index}", index, "Simulated GPU", total * MIB, **changes)


def lease(
    kernel_id: str,
    gpu_uuid: str,
    size: int,
    state: LeaseState = LeaseState.BOUND,
    *,
    since_s: float = 0.0,
    **changes,
) -> Lease:
    return Lease(kernel_id, gpu_uuid, size * MIB, state, 1, since_s, **changes)


def bound(kernel_id: str, gpu_uuid: str, size: int, *, used: int | None = None, **changes):
    """An idle kernel that used its GPU last at 100 s, unless changed."""
    changes.setdefault("last_used_s", 100.0)
    used_bytes = (size if used is None else used) * MIB
    return KernelView(kernel_id, lease(kernel_id, gpu_uuid, size), used_bytes, **changes)


def suspended(kernel_id: str, gpu_uuid: str, size: int, *, since_s: float = 0.0, **changes):
    changes.setdefault("last_used_s", 100.0)
    held = lease(kernel_id, gpu_uuid, size, LeaseState.SUSPENDED, since_s=since_s)
    return KernelView(kernel_id, held, 0, size * MIB, **changes)


def waiting(kernel: KernelView) -> KernelView:
    return replace(kernel, busy=True, waiting=True)


def claim(kernel_id: str, size: int, *, made_s: float = 900.0, **changes) -> Claim:
    changes.setdefault("deadline_s", NOW + 600.0)
    return Claim(f"c-{kernel_id}", kernel_id, size * MIB, made_s, **changes)


def forecast(kernel_id: str, probability: float, high: int = 0) -> Forecast:
    memory = Quantiles(0.0, high * MIB / 2, float(high * MIB))
    horizons = tuple(HorizonForecast(h, memory, probability) for h in (5, 15, 30, 60, 300))
    return Forecast(kernel_id, NOW, "persistence", "kernel", horizons, None, ())


def view(
    gpus: Iterable[GpuView],
    kernels: Iterable[KernelView],
    claims: Iterable[Claim] = (),
    **settings,
) -> ClusterView:
    policy = PolicySettings(**{**PATIENT, **settings})
    return ClusterView(NOW, tuple(gpus), tuple(kernels), tuple(claims), policy)


def kinds(plan: Plan) -> list[str]:
    return [type(a).__name__ for a in plan.actions]


def of(plan: Plan, kind: type) -> list:
    return [a for a in plan.actions if isinstance(a, kind)]


class Cluster:
    """GPUs and kernels that do what a plan says; each step checks what must never happen."""

    def __init__(
        self,
        gpus: Iterable[GpuView],
        settings: PolicySettings | None = None,
        *,
        watched: bool = True,
    ) -> None:
        self.now_s = NOW
        self.watched = watched
        """Off: plans are only carried out, for long simulations."""
        self.gpus = {g.uuid: g for g in gpus}
        self.kernels: dict[str, KernelView] = {}
        self.claims: dict[str, Claim] = {}
        self.former: dict[str, Lease] = {}
        self.settings = settings or PolicySettings(**PATIENT)
        self.epoch = 0
        self.granted: list[str] = []
        self.refused: list[str] = []
        self.halts = 0

    def view(self) -> ClusterView:
        return ClusterView(
            self.now_s,
            tuple(self.gpus.values()),
            tuple(self.kernels.values()),
            tuple(self.claims.values()),
            self.settings,
        )

    def advance(self, after_s: float) -> None:
        """Let time pass; the bursts that run have it."""
        self.now_s += after_s
        for k in list(self.kernels.values()):
            if k.busy and not k.waiting and k.preempted_s is None:
                self.change(k.kernel_id, attained_s=k.attained_s + after_s)

    def change(self, kernel_id: str, **changes) -> None:
        self.kernels[kernel_id] = replace(self.kernels[kernel_id], **changes)

    def free(self) -> dict[str, int]:
        """Free bytes, counted here apart from the code under test."""
        free = {u: g.total_bytes - g.foreign_bytes for u, g in self.gpus.items()}
        for k in self.kernels.values():
            if k.lease is not None:
                free[k.lease.gpu_uuid] -= self.held(k)
            if k.migrating and k.target_gpu_uuid is not None:
                free[k.target_gpu_uuid] -= k.target_bytes
        users = self.users()
        return {u: min(0, f) if users.get(u) else f for u, f in free.items()}

    def users(self) -> dict[str, int]:
        """How many kernels use each GPU that is not shared, or are on their way to it."""
        count = {u: 0 for u, g in self.gpus.items() if g.whole}
        for k in self.kernels.values():
            if k.lease is not None and k.lease.gpu_uuid in count:
                count[k.lease.gpu_uuid] += self.held(k) > 0
            if k.migrating and k.target_gpu_uuid in count:
                count[k.target_gpu_uuid] += k.target_bytes > 0
        return count

    def held(self, k: KernelView) -> int:
        if k.lease is None or k.lease.state is LeaseState.SUSPENDED:
            return 0
        return max(k.lease.bytes, k.used_bytes)

    def state(self) -> dict[str, int]:
        return {k.kernel_id: k.used_bytes + k.suspended_bytes for k in self.kernels.values()}

    def next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def step(self) -> Plan:
        """Decide once, carry the plan out, and check the rules."""
        seen = self.view()
        plan = decide(seen)
        if not self.watched:
            for action in plan.actions:
                self._carry_out(action)
            return plan
        assert plan == decide(seen), "the same view gave two plans"
        before, state, users = self.free(), self.state(), self.users()
        epochs = {k.kernel_id: k.lease.epoch for k in self.kernels.values() if k.lease}
        waits: list[Queue] = []
        self._check_halts(seen, plan)
        for action in plan.actions:
            assert action.reason
            self._carry_out(action)
            if isinstance(action, Queue):
                waits.append(action)
        after = self.free()
        for uuid, number in self.users().items():
            assert number <= max(1, users[uuid]), f"{uuid} is shared"
        for uuid, free in after.items():
            assert free >= min(0, before[uuid]), f"{uuid} over capacity by our own grants"
        assert self.state() == state, "state was lost"
        in_use = [k.lease.epoch for k in self.kernels.values() if k.lease]
        assert len(in_use) == len(set(in_use)), "two leases with one epoch"
        for k in self.kernels.values():
            if k.lease is not None:
                assert k.lease.epoch >= epochs.get(k.kernel_id, 0)
        assert [q.position for q in waits] == list(range(1, len(waits) + 1))
        self._check_waits(waits, after)
        answered = {a.claim_id for a in plan.actions if isinstance(a, (Bind, Queue, Refuse))}
        assert answered == {c.claim_id for c in seen.claims}, "a claim without an answer"
        return plan

    def _check_halts(self, seen: ClusterView, plan: Plan) -> None:
        """Who halts whom; counted here apart from the code under test."""
        policy, claims = self.settings, {c.kernel_id: c for c in seen.claims}
        for action in plan.actions:
            if not (isinstance(action, Reclaim) and action.mid_cell):
                continue
            assert policy.preempt
            assert action.rung is Rung.DRIVER_CHECKPOINT
            victim, by = self.kernels[action.kernel_id], claims[action.for_kernel_id]
            assert victim.priority <= by.priority
            assert victim.attained_s >= policy.preempt_min_s
            attained_s = self.kernels[by.kernel_id].attained_s
            aged = seen.now_s - by.made_s >= policy.preempt_age_s
            assert aged or victim.attained_s >= policy.preempt_factor * attained_s
            self.halts += 1

    def allowed(self, one: Claim) -> set[str]:
        """GPUs a claim may be granted on without moving state."""
        k = self.kernels[one.kernel_id]
        need = max(one.bytes, k.used_bytes + k.suspended_bytes)
        open_gpus = {
            g.uuid
            for g in self.gpus.values()
            if self._takes_leases(g.uuid)
            and g.total_bytes >= need
            and one.affinity in (None, g.uuid, g.name)
        }
        if k.lease is None or k.used_bytes + k.suspended_bytes == 0:
            return open_gpus
        own = self.gpus[k.lease.gpu_uuid]
        if own.lost or own.total_bytes < need:
            return set()
        movable = k.movable and (k.checkpointed or (k.has_agent and k.keep_reason is None))
        if movable and one.affinity not in (None, own.uuid, own.name):
            return set()
        if movable and own.risk is RiskLevel.CRITICAL and open_gpus - {own.uuid}:
            return set()
        return {own.uuid}

    def _check_waits(self, waits: list[Queue], free: dict[str, int]) -> None:
        ahead: set[str] = set()
        for q in waits:
            one, k = self.claims[q.claim_id], self.kernels[q.kernel_id]
            if k.migrating:
                if k.target_gpu_uuid is not None:
                    ahead.add(k.target_gpu_uuid)
                continue
            need = max(one.bytes, k.used_bytes + k.suspended_bytes)
            allowed = self.allowed(one)
            for uuid in allowed - ahead:
                own = self.held(k) if k.lease and k.lease.gpu_uuid == uuid else 0
                assert free[uuid] + own < need, f"{q.claim_id} waits beside usable {uuid}"
            ahead |= allowed
            if k.movable:
                ahead |= {u for u, g in self.gpus.items() if g.total_bytes >= need}

    # ------------------------------------------------------------------ actions

    def _carry_out(self, action) -> None:
        match action:
            case Bind(kernel_id, uuid, size, claim_id):
                self._bind(kernel_id, uuid, size)
                one = self.claims.pop(claim_id)
                assert size >= one.bytes
                self.change(kernel_id, busy=one.origin in ("cell", "preempted"), waiting=False)
                if one.origin == "preempted":
                    self.change(kernel_id, preempted_s=None, switched_s=self.now_s)
                self.granted.append(claim_id)
            case Prebind(kernel_id, uuid, size):
                assert self._takes_leases(uuid)
                k = self.kernels[kernel_id]
                if k.lease is None:
                    self._open(LeaseEvent.RESERVE, kernel_id, uuid, size)
                else:
                    assert not k.busy
                    self._bind(kernel_id, uuid, size)
            case Resize(kernel_id, size):
                k = self.kernels[kernel_id]
                assert k.lease is not None
                assert not k.pinned or size >= k.lease.bytes
                assert size >= min(k.used_bytes, k.lease.bytes)
                self.change(kernel_id, lease=resize(k.lease, size))
            case Reclaim(kernel_id, rung, _, _, mid_cell):
                if mid_cell:
                    self._halt(kernel_id)
                else:
                    assert rung is self.kernels[kernel_id].suspend_by
                    self._reclaim(kernel_id, checkpointed=rung is Rung.DRIVER_CHECKPOINT)
            case Release(kernel_id):
                k = self.kernels[kernel_id]
                assert k.used_bytes + k.suspended_bytes == 0, "released state"
                assert k.lease is not None
                advance(k.lease, LeaseEvent.RELEASE, now_s=self.now_s)
                self.change(kernel_id, lease=None)
            case Migrate(kernel_id, uuid):
                self._begin_migration(kernel_id, uuid, action.bytes)
            case Cordon(uuid):
                assert not self.gpus[uuid].cordoned
                self.gpus[uuid] = replace(self.gpus[uuid], cordoned=True)
            case TakeSnapshot(kernel_id):
                assert not self.kernels[kernel_id].checkpointed
                last_s = self.kernels[kernel_id].last_snapshot_s
                if last_s is not None:
                    assert self.now_s - last_s >= self.settings.snapshot_interval_s
                self.change(kernel_id, last_snapshot_s=self.now_s)
            case Refuse(claim_id, kernel_id):
                del self.claims[claim_id]
                self.refused.append(claim_id)
                self.change(kernel_id, busy=False, waiting=False)
            case Queue():
                pass
            case _:
                raise AssertionError(action)

    def _takes_leases(self, uuid: str) -> bool:
        g = self.gpus[uuid]
        return not (g.cordoned or g.lost or g.risk is RiskLevel.CRITICAL)

    def _open(self, event: LeaseEvent, kernel_id: str, uuid: str, size: int) -> None:
        expires_s = self.now_s + self.settings.reservation_s
        made = open_lease(
            event,
            kernel_id=kernel_id,
            gpu_uuid=uuid,
            bytes=size,
            epoch=self.next_epoch(),
            now_s=self.now_s,
            expires_s=expires_s,
        )
        self.change(kernel_id, lease=made)

    def _bind(self, kernel_id: str, uuid: str, size: int) -> None:
        k = self.kernels[kernel_id]
        if k.lease is None:
            assert self._takes_leases(uuid), "a new lease on a closed GPU"
            self._open(LeaseEvent.BIND, kernel_id, uuid, size)
            return
        if k.used_bytes + k.suspended_bytes > 0:
            assert k.lease.gpu_uuid == uuid, "state bound away from its GPU without a move"
            assert not self.gpus[uuid].lost
        elif uuid != k.lease.gpu_uuid:
            assert self._takes_leases(uuid)
        if k.lease.state is LeaseState.SUSPENDED and k.lease.gpu_uuid != uuid:
            advance(k.lease, LeaseEvent.RELEASE, now_s=self.now_s)
            self.change(kernel_id, lease=None)
            self._open(LeaseEvent.BIND, kernel_id, uuid, size)
            return
        is_back = k.lease.state is LeaseState.SUSPENDED
        after = advance(
            k.lease,
            LeaseEvent.RESUME if is_back else LeaseEvent.BIND,
            now_s=self.now_s,
            epoch=self.next_epoch(),
            gpu_uuid=uuid,
            bytes=size,
        )
        used = k.used_bytes + k.suspended_bytes
        assert size >= used
        self.change(kernel_id, lease=after, used_bytes=used, suspended_bytes=0, checkpointed=False)

    def _halt(self, kernel_id: str) -> None:
        k = self.kernels[kernel_id]
        assert k.busy
        assert not k.waiting
        assert k.why_not_preempt is None
        assert k.preempted_s is None
        assert self.now_s - k.switched_s >= self.settings.preempt_min_s, "two switches in a row"
        self.change(kernel_id, busy=False)
        self._reclaim(kernel_id, checkpointed=True)
        self.change(kernel_id, busy=True, preempted_s=self.now_s, switched_s=self.now_s)
        assert k.lease is not None
        one = Claim(
            f"p{self.next_epoch()}",
            kernel_id,
            max(k.lease.bytes, k.used_bytes),
            self.now_s,
            math.inf,
            k.priority,
            origin="preempted",
        )
        self.claims[one.claim_id] = one

    def _reclaim(self, kernel_id: str, *, checkpointed: bool = False) -> None:
        k = self.kernels[kernel_id]
        assert not k.busy or k.waiting, "took from a running kernel"
        assert not k.pinned, "took from a pinned kernel"
        assert checkpointed or k.suspend_by is not None
        assert not k.migrating
        assert k.lease is not None
        after = advance(k.lease, LeaseEvent.SUSPEND, now_s=self.now_s, epoch=self.next_epoch())
        state = k.used_bytes + k.suspended_bytes
        self.change(
            kernel_id,
            lease=after,
            used_bytes=0,
            suspended_bytes=state,
            checkpointed=checkpointed,
        )

    def _begin_migration(self, kernel_id: str, uuid: str, target_bytes: int) -> None:
        k = self.kernels[kernel_id]
        assert not k.migrating, "two migrations of one kernel"
        if k.checkpointed:
            assert self.gpus[uuid].name == self.gpus[k.lease.gpu_uuid].name, "of another kind"
        assert self._takes_leases(uuid)
        assert k.lease is not None
        assert k.lease.gpu_uuid != uuid
        assert k.lease.state is LeaseState.SUSPENDED or target_bytes >= k.used_bytes
        self.former[kernel_id] = k.lease
        held = k.lease
        if not k.busy or k.preempted_s is not None:
            held = advance(k.lease, LeaseEvent.BEGIN_MIGRATION, now_s=self.now_s)
        self.change(
            kernel_id,
            lease=held,
            migrating=True,
            target_gpu_uuid=uuid,
            target_bytes=target_bytes,
        )

    def end_migration(self, kernel_id: str, *, commit: bool) -> None:
        k, former = self.kernels[kernel_id], self.former.pop(kernel_id)
        held = k.lease
        assert held is not None
        if held.state is not LeaseState.MIGRATING:
            if former.state is not held.state or former.bytes != held.bytes:
                former = held
            held = advance(held, LeaseEvent.BEGIN_MIGRATION, now_s=self.now_s)
        event = LeaseEvent.COMMIT_MIGRATION if commit else LeaseEvent.ABORT_MIGRATION
        after = advance(
            held,
            event,
            now_s=self.now_s,
            epoch=self.next_epoch(),
            gpu_uuid=k.target_gpu_uuid if commit else None,
            former=former,
            bytes=k.target_bytes if commit and former.state is LeaseState.BOUND else None,
        )
        self.change(kernel_id, lease=after, migrating=False, target_gpu_uuid=None, target_bytes=0)
