"""Long bursts make way in the middle of a cell: least attained service, with a bound on waiting.

A burst that has had much of a GPU is expected to want much more; one that has had little is
likely to be over soon. So among claims of one priority those go first whose bursts have had least,
and one that finds no room otherwise may halt a running burst that has had `preempt_factor` times
as much. No burst is switched twice within `preempt_min_s`.

The bound: who has waited `preempt_age_s` goes before everybody of its priority who has waited for
less long, and may halt any burst of its priority or below that can be halted at all and has had its
`preempt_min_s`, whatever either of them has had. So where all bursts of a GPU can be halted, a
claim waits at most `preempt_age_s + (n + 1) * (preempt_min_s + grace_period_s + 3 * switch)`
seconds, where `n` other claims of its priority or above wait, and `switch` is the time to suspend
one burst and to bring another back: it is not done where a burst is about to end sooner. Claims of
a higher priority that keep coming are not bounded: that is what priority means.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..model import Claim, KernelView, LeaseState, PolicySettings
from .entry import Entry
from .ledger import Ledger, short

_HAS_A_CELL = ("cell", "preempted")


@dataclass(frozen=True, slots=True)
class Waiter:
    """On whose behalf a burst may be halted: what it has had, in seconds, and whether it is old."""

    attained_s: float
    aged: bool


def service_s(kernel: KernelView, settings: PolicySettings) -> float:
    """Return what a kernel's burst counts as having had of a GPU, in seconds.

    Bursts too short to be halted count alike: among them it is age that decides.
    """
    return max(kernel.attained_s, settings.preempt_min_s / max(1.0, settings.preempt_factor))


def is_aged(claim: Claim, now_s: float, settings: PolicySettings) -> bool:
    """Return whether a claim has waited so long that it goes before younger ones."""
    return now_s - claim.made_s >= settings.preempt_age_s


def claim_key(ledger: Ledger, claim: Claim) -> tuple[int, bool, float, float, str]:
    """Return the place of a claim among all: priority, age bound, service, age, id.

    Without `preempt` neither the bound nor service count.
    """
    settings = ledger.settings
    first, served_s = False, 0.0
    if settings.preempt:
        first = is_aged(claim, ledger.now_s, settings)
        served_s = 0.0 if first else service_s(ledger.entry(claim.kernel_id).kernel, settings)
    return (-claim.priority, not first, served_s, claim.made_s, claim.claim_id)


def waiter(ledger: Ledger, claim: Claim) -> Waiter | None:
    """Return on whose behalf bursts may be halted, ``None`` if on nobody's.

    Only a cell that waits is worth it: not memory asked for ahead of use.
    """
    settings = ledger.settings
    if not settings.preempt or claim.origin not in _HAS_A_CELL:
        return None
    kernel = ledger.entry(claim.kernel_id).kernel
    return Waiter(service_s(kernel, settings), is_aged(claim, ledger.now_s, settings))


def bursts(ledger: Ledger, uuid: str, priority: int, by: Waiter) -> list[Entry]:
    """Return the running bursts that may be suspended in their middle for a claim.

    Those that have had most of the GPU come first.
    """
    memo = ledger.memo[uuid]
    found: list[Entry] | None = memo.get("bursts")
    if found is None:
        found = [e for e in ledger.on_gpu(uuid) if _can_be_halted(ledger, e)]
        found.sort(key=lambda e: (-e.kernel.attained_s, e.kernel_id))
        memo["bursts"] = found
    least_s = 0.0 if by.aged else max(1.0, ledger.settings.preempt_factor) * by.attained_s
    return [e for e in found if e.kernel.priority <= priority and e.kernel.attained_s >= least_s]


def _can_be_halted(ledger: Ledger, entry: Entry) -> bool:
    kernel, lease, settings = entry.kernel, entry.kernel.lease, ledger.settings
    if not entry.running or entry.state is not LeaseState.BOUND or lease is None or entry.held == 0:
        return False
    if kernel.why_not_preempt is not None or kernel.pinned or kernel.preempted_s is not None:
        return False
    if entry.settled or entry.moving:
        return False
    # A burst that has just got its GPU, be it between two of its cells, has had a switch too.
    since_s = max(kernel.switched_s, lease.since_s)
    if ledger.now_s - since_s < settings.preempt_min_s:
        return False
    return kernel.attained_s >= settings.preempt_min_s


def remaining_s(ledger: Ledger, entry: Entry) -> float:
    """Return for how long a running burst is expected to go on, in seconds.

    Where its usual duration does not say, or is over, as long as it has lasted: what is expected of
    durations with a heavy tail.
    """
    end_s = entry.kernel.expected_end_s
    if end_s is not None and end_s > ledger.now_s:
        return end_s - ledger.now_s
    return entry.kernel.attained_s


def switch_cost_s(entries: Iterable[Entry]) -> float:
    """Return what halting bursts costs: their way out and back, each about as long as a restore."""
    return sum(2 * e.kernel.restore_cost_s for e in entries)


def why_halted(entry: Entry, for_kernel_id: str, by: Waiter) -> str:
    """Return in words why a burst makes way for another kernel's."""
    had = f"its burst has had {entry.kernel.attained_s:.0f} s of its GPU"
    if by.aged:
        return f"{had}, and {short(for_kernel_id)} has waited longest"
    return f"{had}, that of {short(for_kernel_id)} less than {by.attained_s:.0f} s"
