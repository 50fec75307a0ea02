"""GPUs that stand empty are kept empty, where that costs nobody anything."""

from __future__ import annotations

import math

from ..model import GpuView, LeaseState
from ..sizes import format_bytes
from .capacity import risk_rank
from .entry import Entry
from .ledger import Ledger, short
from .spread import may_go
from .targets import Targets

SETTLED_AFTER_S = 600.0
"""How long a kernel must have been idle, and where it is, before it goes elsewhere for power's
sake: duties are measured over so long, so a shorter absence says nothing about them."""

LOW_NEED = 0.1
"""P(needed within `NEED_HORIZON_S`) up to which nobody is expected to notice a move."""

NEED_HORIZON_S = 300.0

DUTY_SHARE = 0.5
"""Share of `max_duty` that duties may sum to after such a move. What is over `max_duty` is spread
again; the rest lies between them, so that a kernel is not sent to and fro."""


def consolidate(ledger: Ledger) -> None:
    """Plan at most one move of an idle kernel that is alone on its GPU to a GPU in use.

    Each such move leaves one GPU more empty, and none begins while a claim waits or another move
    is under way.
    """
    if not ledger.settings.consolidate or ledger.is_moving():
        return
    leaving = [
        entry
        for gpu in ledger.gpus.values()
        if (entry := _alone(ledger, gpu)) is not None and _may_go(ledger, entry)
    ]
    if not leaving:
        return
    limit = DUTY_SHARE * ledger.settings.max_duty
    in_use = [g for g in ledger.open_gpus.gpus if _in_use(ledger, g) and _duty(ledger, g) <= limit]
    targets = Targets((g, _spare(ledger, g), _duty(ledger, g)) for g in in_use)
    for entry in sorted(leaving, key=lambda e: (e.state_bytes, e.kernel_id)):
        gpu = ledger.gpus[entry.gpu_uuid or ""]
        if targets.has(gpu, max(entry.held, _wants(entry)), limit - (entry.kernel.duty or 0.0)):
            target = min(
                (g for g in in_use if g is not gpu and _has_room(ledger, g, gpu, entry)),
                key=lambda g: (ledger.free[g.uuid], g.index),
                default=None,
            )
            if target is not None:
                break
    else:
        return
    source, name = entry.gpu_uuid, short(entry.kernel_id)
    likely = _need(entry)
    ledger.migrate(
        entry,
        target,
        entry.held,
        f"Move {name} ({format_bytes(entry.state_bytes)}) to {target.uuid} and leave {source} "
        f"empty: {name} is alone there, idle {ledger.idle_s(entry):.0f} s, "
        f"P(needed in {NEED_HORIZON_S:g} s) = {likely:.2f}",
    )


def _alone(ledger: Ledger, gpu: GpuView) -> Entry | None:
    """Return the only kernel of a GPU that nothing is on its way to."""
    uuid = gpu.uuid
    if ledger.arriving[uuid] or len(ledger.leased[uuid]) != 1:
        return None
    return ledger.on_gpu(uuid)[0]


def _may_go(ledger: Ledger, entry: Entry) -> bool:
    kernel, lease = entry.kernel, entry.kernel.lease
    return (
        may_go(ledger, entry)
        and lease is not None
        and entry.held > 0
        and kernel.duty is not None
        and ledger.idle_s(entry) >= SETTLED_AFTER_S
        and ledger.now_s - lease.since_s >= SETTLED_AFTER_S
        and kernel.forecast is not None
        and _need(entry) <= LOW_NEED
    )


def _need(entry: Entry) -> float:
    forecast = entry.kernel.forecast
    return 1.0 if forecast is None else forecast.need_probability(NEED_HORIZON_S)


def _in_use(ledger: Ledger, gpu: GpuView) -> bool:
    """Return whether a kernel is bound to a GPU for whose memory no claim waits."""
    return gpu.uuid not in ledger.blocked and any(
        e.state is LeaseState.BOUND for e in ledger.on_gpu(gpu.uuid)
    )


def _duty(ledger: Ledger, gpu: GpuView) -> float:
    """Return the duties on a GPU; who is suspended there comes back, with its duty."""
    return sum(e.kernel.duty or 0.0 for e in ledger.on_gpu(gpu.uuid))


def _spare(ledger: Ledger, gpu: GpuView) -> int:
    """Return what stays free on a GPU when all there have what they are expected to want.

    That is the forecasts' high quantiles.
    """
    growth = sum(max(0, _wants(e) - e.held) for e in ledger.on_gpu(gpu.uuid))
    return ledger.free[gpu.uuid] - growth


def _has_room(ledger: Ledger, target: GpuView, source: GpuView, entry: Entry) -> bool:
    duty = sum(e.kernel.duty or 0.0 for e in (entry, *ledger.on_gpu(target.uuid)))
    return (
        duty <= DUTY_SHARE * ledger.settings.max_duty
        and risk_rank(target) <= risk_rank(source)
        and ledger.can_reach(entry, target)
        and _spare(ledger, target) >= max(entry.held, _wants(entry))
    )


def _wants(entry: Entry) -> int:
    if entry.kernel.forecast is None:
        return entry.state_bytes
    high = entry.kernel.forecast.memory_bytes(NEED_HORIZON_S).high
    return max(entry.state_bytes, math.ceil(high) if math.isfinite(high) and high > 0 else 0)
