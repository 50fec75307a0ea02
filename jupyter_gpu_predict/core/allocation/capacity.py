"""How much of each GPU is free, and which GPU suits a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...errors import UnsatisfiableError
from ..model import Claim, ClusterView, GpuView, KernelView, LeaseState, RiskLevel
from ..sizes import format_bytes

RISK_RANK = {RiskLevel.NONE: 0, RiskLevel.WARNING: 1, RiskLevel.CRITICAL: 2}
"""Order of the risk levels, the safest first."""


def held_bytes(kernel: KernelView) -> int:
    """Return what a kernel keeps from others on its lease's GPU.

    That is what its lease sets aside, or what it really uses where that is more.
    """
    lease = kernel.lease
    if lease is None or lease.state is LeaseState.RELEASED:
        return 0
    if lease.state is LeaseState.SUSPENDED:
        return lease.held_bytes
    return max(lease.held_bytes, kernel.used_bytes)


def state_bytes(kernel: KernelView) -> int:
    """Return the size of a kernel's device state, on the GPU and taken back together."""
    lease = kernel.lease
    if lease is not None and lease.state is LeaseState.SUSPENDED:
        # The last demand sample of a kernel just suspended may still show what it used before.
        return lease.resident_bytes + kernel.suspended_bytes
    return kernel.used_bytes + kernel.suspended_bytes


def needed_bytes(kernel: KernelView, claim: Claim) -> int:
    """Return the bytes a kernel must be granted: its claim, and never less than its state."""
    return max(claim.bytes, state_bytes(kernel))


def free_bytes(view: ClusterView) -> dict[str, int]:
    """Return free bytes by GPU uuid; negative where more is held than there is.

    What is set aside on the target of a migration counts as held; a lost GPU has nothing free.
    """
    free = {g.uuid: 0 if g.lost else g.total_bytes - g.foreign_bytes for g in view.gpus}
    for kernel in view.kernels:
        if kernel.lease is not None and kernel.lease.gpu_uuid in free:
            free[kernel.lease.gpu_uuid] -= held_bytes(kernel)
        if kernel.migrating and kernel.target_gpu_uuid in free:
            free[kernel.target_gpu_uuid] -= kernel.target_bytes
    return free


def matches(gpu: GpuView, affinity: str | None) -> bool:
    """Return whether `affinity` (a uuid, or a part of a name in any case) allows `gpu`."""
    if affinity is None:
        return True
    wanted = affinity.strip().casefold()
    return wanted == gpu.uuid.casefold() or wanted in gpu.name.casefold()


def takes_new_leases(gpu: GpuView) -> bool:
    """Return whether a GPU is neither cordoned, lost nor at critical risk."""
    return not (gpu.cordoned or gpu.lost or gpu.risk is RiskLevel.CRITICAL)


def largest_gpu_bytes(gpus: Iterable[GpuView], affinity: str | None = None) -> int:
    """Return the size of the largest GPU that `affinity` allows and that answers, 0 if none.

    Cordons and risks do not count: they may pass while a claim waits.
    """
    sizes = (g.total_bytes for g in gpus if not g.lost and matches(g, affinity))
    return max(sizes, default=0)


def check_satisfiable(claim: Claim, gpus: Sequence[GpuView]) -> None:
    """Check that some GPU could hold `claim` if nobody else were there.

    Raises
    ------
    UnsatisfiableError
        If none could; the message says the largest there is.
    """
    why = why_impossible(claim.bytes, claim.affinity, gpus)
    if why is not None:
        raise UnsatisfiableError(f"claim {claim.claim_id}: {why}")


def why_impossible(size: int, affinity: str | None, gpus: Sequence[GpuView]) -> str | None:
    """Return why no GPU could ever hold `size` bytes, or ``None`` if one could."""
    alive = [g for g in gpus if not g.lost]
    if not alive:
        return "there is no GPU that answers; see `jupyter gpu doctor`"
    fitting = [g for g in alive if matches(g, affinity)]
    if not fitting:
        names = ", ".join(sorted({g.name for g in alive}))
        return f"no GPU is called {affinity!r}; there is {names}"
    largest = largest_gpu_bytes(fitting)
    if size > largest:
        which = "the largest GPU" if affinity is None else f"the largest GPU for {affinity!r}"
        return f"{format_bytes(size)} is more than {which} has ({format_bytes(largest)}); ask less"
    return None


@dataclass(frozen=True, slots=True)
class Fit:
    """A GPU with enough free memory for a grant.

    `free_after_bytes` is what stays free after it, `duty_sum` the predicted duties there with the
    claimant's, ``None`` where the claimant's is unknown. `own` is the GPU the kernel is on.
    `wakes` says that it stands empty now and would better stay so.
    """

    gpu: GpuView
    free_after_bytes: int
    duty_sum: float | None
    own: bool
    wakes: bool = False


def best_fit(fits: Iterable[Fit], max_duty: float) -> Fit | None:
    """Return the fit to take, ``None`` of none.

    The kernel's own GPU first, then the lowest risk, then the tightest fit; where duties are
    known, a GPU on which they sum to at most `max_duty`, with the most memory free. A GPU that
    would better stay empty comes after those that are as safe and not crowded.
    """

    def key(fit: Fit) -> tuple[bool, int, bool, bool, int, int]:
        crowded = fit.duty_sum is not None and fit.duty_sum > max_duty
        spread = fit.free_after_bytes if fit.duty_sum is None else -fit.free_after_bytes
        return (not fit.own, RISK_RANK[fit.gpu.risk], crowded, fit.wakes, spread, fit.gpu.index)

    return min(fits, key=key, default=None)
