"""How long a claim has to wait for what may come free on a GPU."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from ..model import LeaseState
from .entry import Entry
from .ledger import Ledger
from .preempt import remaining_s
from .steps import Wish


def obtainable_bytes(ledger: Ledger, uuid: str, wish: Wish) -> int:
    """Return what could come free on a GPU for `wish` once the running cells are over."""
    memo, key = ledger.memo[uuid], ("obtainable", wish.priority)
    size: int | None = memo.get(key)
    if size is None:
        gpu = ledger.gpus[uuid]
        kept = sum(e.held for e in ledger.on_gpu(uuid) if _keeps(e, wish))
        size = memo[key] = gpu.total_bytes - gpu.foreign_bytes - ledger.arriving[uuid] - kept
    if wish.entry.gpu_uuid == uuid and _keeps(wish.entry, wish):
        return size + wish.entry.held
    return size


def wait_s(
    ledger: Ledger, uuid: str, deficit: int, wish: Wish, *, guess: bool = False
) -> float | None:
    """Return when `deficit` bytes are expected to be free on a GPU, ``None`` if that is unknown.

    Running kernels count from their expected end on, all of them with the grace period. With
    `guess` those without one are taken to go on for as long as their bursts have lasted.
    """
    memo, key = ledger.memo[uuid], ("coming", wish.priority, guess)
    found: _Coming | None = memo.get(key)
    if found is None:
        found = memo[key] = _coming(ledger, uuid, wish.priority, guess=guess)
    coming, freed, plain = found
    if plain and wish.entry.gpu_uuid != uuid:
        place = bisect_left(freed, deficit)
        return coming[place][0] if place < len(coming) else None
    total = 0
    for after_s, size, entry in coming:
        if entry is wish.entry or _is_ahead(entry, wish):
            continue
        total += size
        if total >= deficit:
            return after_s
    return None


_Coming = tuple[list[tuple[float, int, Entry]], list[int], bool]


def _coming(ledger: Ledger, uuid: str, priority: int, *, guess: bool) -> _Coming:
    """Return after how long which bytes come free, their sums, and if none of them claims."""
    grace_s = ledger.settings.grace_period_s
    coming: list[tuple[float, int, Entry]] = []
    for entry in ledger.on_gpu(uuid):
        kernel = entry.kernel
        if kernel.priority > priority or not _yields(entry):
            continue
        if entry.running or (entry.settled and entry.state is LeaseState.BOUND):
            if not entry.running or (kernel.expected_end_s is None and not guess):
                continue
            if guess or kernel.expected_end_s is None:
                left_s = remaining_s(ledger, entry)
            else:
                left_s = max(0.0, kernel.expected_end_s - ledger.now_s)
            coming.append((left_s + grace_s, entry.held, entry))
        elif not entry.settled and kernel.suspend_by is not None:
            coming.append((max(0.0, grace_s - ledger.idle_s(entry)), entry.held, entry))
    coming.sort(key=lambda c: c[:2])
    plain = all(e.claim_order is None for *_, e in coming)
    return coming, list(accumulate(size for _, size, _ in coming)), plain


def _keeps(entry: Entry, wish: Wish) -> bool:
    return entry.kernel.priority > wish.priority or not _yields(entry)


def _yields(entry: Entry) -> bool:
    """Return whether an entry's memory can come free at all while its kernel lives."""
    kernel = entry.kernel
    # What an agent refuses now it may give later; without one, what cannot be taken now never can.
    if kernel.pinned or (kernel.suspend_by is None and not kernel.has_agent):
        return False
    return entry.state is not LeaseState.SUSPENDED


def _is_ahead(entry: Entry, wish: Wish) -> bool:
    order = entry.claim_order
    return order is not None and wish.order is not None and order < wish.order
