"""How much of each GPU is free, and which GPU suits a claim."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import UnsatisfiableError
from ..model import Claim, GpuView, KernelView, LeaseState, RiskLevel
from ..sizes import format_bytes

RISK_RANK = {RiskLevel.NONE: 0, RiskLevel.WARNING: 1, RiskLevel.CRITICAL: 2}
"""Order of the risk levels, the safest first."""


def risk_rank(gpu: GpuView) -> int:
    """Return the place of a GPU's risk among the levels, 0 for the safest."""
    # Looking up a member of an enumeration is slow, and nearly all GPUs are well.
    return 0 if gpu.risk is RiskLevel.NONE else RISK_RANK[gpu.risk]


def held_bytes(kernel: KernelView) -> int:
    """Return what a kernel keeps from others on its lease's GPU.

    That is what its lease sets aside, or what it really uses where that is more.
    """
    lease = kernel.lease
    if lease is None or lease.state is LeaseState.RELEASED:
        return 0
    if lease.state is LeaseState.SUSPENDED:
        return lease.resident_bytes
    return lease.bytes if lease.bytes > kernel.used_bytes else kernel.used_bytes


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
