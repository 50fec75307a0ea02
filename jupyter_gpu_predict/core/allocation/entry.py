"""A kernel as it will be once the actions planned so far are carried out."""

from __future__ import annotations

from ..model import KernelView, LeaseState
from .capacity import held_bytes


class Entry:
    """A kernel in the working picture; the view it came from stays as it was."""

    __slots__ = (
        "claim_order",
        "gpu_uuid",
        "held",
        "idle_since_s",
        "kernel",
        "kernel_id",
        "moving",
        "running",
        "settled",
        "state",
        "state_bytes",
        "suspended",
        "target_bytes",
        "target_uuid",
    )

    def __init__(self, kernel: KernelView) -> None:
        lease, size = kernel.lease, kernel.suspended_bytes
        self.kernel = kernel
        self.kernel_id = kernel.kernel_id
        self.gpu_uuid: str | None = None
        self.state: LeaseState | None = None
        self.held = 0
        self.suspended = size
        self.idle_since_s = kernel.last_used_s
        self.moving = kernel.migrating
        if lease is not None and lease.state is not LeaseState.RELEASED:
            self.gpu_uuid, self.state = lease.gpu_uuid, lease.state
            self.held = held_bytes(kernel)
            if lease.state is LeaseState.MIGRATING:
                self.moving = True
            elif lease.state is not LeaseState.SUSPENDED and lease.since_s > kernel.last_used_s:
                # What was bound ahead of use counts as fresh from then on, or it would be taken
                # back at once and brought back again.
                self.idle_since_s = lease.since_s
        if self.state is LeaseState.SUSPENDED:
            # The last demand sample of a kernel just suspended may still show what it used before.
            self.state_bytes = self.held + size
        else:
            self.state_bytes = kernel.used_bytes + size
        """Device state of the kernel, on the GPU and taken back together: no plan changes it."""
        self.running = kernel.busy and not kernel.waiting
        """Whether a cell runs (a cell that waits for its claim has not started)."""
        self.target_uuid = kernel.target_gpu_uuid
        self.target_bytes = kernel.target_bytes
        self.settled = False
        """The plan has decided about this kernel: nothing more is taken from it."""
        self.claim_order: int | None = None
        """Place of the kernel's first claim in the order of claims."""

    @property
    def used(self) -> int:
        """Device state that is on the GPU."""
        return self.state_bytes - self.suspended

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
