"""Every lease of this server: the one place where a lease changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..core.allocation.lease import LeaseEvent, advance, open_lease, resize
from ..core.model import Lease, LeaseState
from ..errors import NotFoundError
from .ports import TraceStore


class LeaseBook:
    """Advances leases by the state machine, with epochs from the store, and saves each change."""

    def __init__(self, store: TraceStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._before_move: dict[str, Lease] = {}

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._leases.values()))

    def get(self, kernel_id: str) -> Lease | None:
        """Return the kernel's lease if it has one that is not over."""
        return self._leases.get(kernel_id)

    def on(self, gpu_uuid: str) -> list[Lease]:
        """Return the leases on a GPU."""
        return [lease for lease in self._leases.values() if lease.gpu_uuid == gpu_uuid]

    async def adopt(self, lease: Lease) -> None:
        """Take over a lease of an earlier server as it is."""
        await self._put(lease)

    async def reserve(
        self, kernel_id: str, gpu_uuid: str, wanted_bytes: int, expires_s: float
    ) -> Lease:
        """Set memory aside ahead of use."""
        return await self._grant(LeaseEvent.RESERVE, kernel_id, gpu_uuid, wanted_bytes, expires_s)

    async def bind(self, kernel_id: str, gpu_uuid: str, wanted_bytes: int) -> Lease:
        """Grant memory for use, whatever state the lease is in."""
        return await self._grant(LeaseEvent.BIND, kernel_id, gpu_uuid, wanted_bytes, None)

    async def _grant(
        self,
        event: LeaseEvent,
        kernel_id: str,
        gpu_uuid: str,
        wanted_bytes: int,
        expires_s: float | None,
    ) -> Lease:
        epoch = await self._epoch()
        # From here to `_put` nothing else runs, so the lease read is the lease that is changed.
        lease = self.get(kernel_id)
        if lease is not None and lease.state is LeaseState.SUSPENDED:
            if lease.gpu_uuid == gpu_uuid and event is LeaseEvent.BIND:
                event = LeaseEvent.RESUME
            elif lease.gpu_uuid != gpu_uuid:
                # Only a kernel with no state left on its GPU is bound elsewhere: a new lease.
                del self._leases[kernel_id]
                lease = None
        if lease is None:
            granted = open_lease(
                event,
                kernel_id=kernel_id,
                gpu_uuid=gpu_uuid,
                bytes=wanted_bytes,
                epoch=epoch,
                now_s=self._clock(),
                expires_s=expires_s,
            )
        else:
            granted = advance(
                lease,
                event,
                now_s=self._clock(),
                epoch=epoch,
                gpu_uuid=gpu_uuid,
                bytes=wanted_bytes,
                expires_s=expires_s,
            )
        return await self._put(granted)

    async def resize(self, kernel_id: str, wanted_bytes: int) -> Lease:
        """Change the size of a lease in use."""
        return await self._put(resize(self._need(kernel_id), wanted_bytes))

    async def renew(self, kernel_id: str, epoch: int) -> Lease | None:
        """Put a lease under an epoch that its kernel may have heard, and return it."""
        lease = self.get(kernel_id)
        if lease is None or lease.epoch >= epoch:
            return lease
        return await self._put(replace(lease, epoch=epoch))

    async def rebook(self, granted: Lease, gpu_uuid: str) -> Lease | None:
        """Put a grant on another GPU, where the kernel's memory turns out to be.

        The kernel has not heard of it, so the epoch stays. ``None`` if the grant is not in force.
        """
        lease = self.get(granted.kernel_id)
        if lease is None or (lease.epoch, lease.state) != (granted.epoch, LeaseState.BOUND):
            return None
        return await self._put(replace(lease, gpu_uuid=gpu_uuid))

    async def next_epoch_for_suspend(self, kernel_id: str) -> int:
        """Return the epoch that a reclaim of this kernel will carry."""
        self._need(kernel_id)
        return await self._epoch()

    async def suspend(self, kernel_id: str, epoch: int, resident_bytes: int) -> Lease:
        """Record that the kernel's memory was taken back."""
        suspended = advance(
            self._need(kernel_id),
            LeaseEvent.SUSPEND,
            now_s=self._clock(),
            epoch=epoch,
            resident_bytes=resident_bytes,
        )
        return await self._put(suspended)

    async def begin_move(self, kernel_id: str) -> Lease:
        """Mark the lease as migrating."""
        former = self._need(kernel_id)
        moving = advance(former, LeaseEvent.BEGIN_MIGRATION, now_s=self._clock())
        self._before_move[kernel_id] = former
        return await self._put(moving)

    async def end_move(
        self, kernel_id: str, gpu_uuid: str | None, wanted_bytes: int = 0
    ) -> Lease | None:
        """Commit the move to `gpu_uuid`, or with ``None`` put everything back as it was.

        A kernel that was not suspended has `wanted_bytes` there.
        """
        epoch = None if gpu_uuid is None else await self._epoch()
        lease, former = self.get(kernel_id), self._before_move.pop(kernel_id, None)
        if lease is None or former is None:
            return lease
        event = LeaseEvent.ABORT_MIGRATION if gpu_uuid is None else LeaseEvent.COMMIT_MIGRATION
        ended = advance(
            lease,
            event,
            now_s=self._clock(),
            former=former,
            epoch=epoch,
            gpu_uuid=gpu_uuid,
            bytes=None
            if gpu_uuid is None or former.state is LeaseState.SUSPENDED
            else wanted_bytes,
        )
        return await self._put(ended)

    async def release(self, kernel_id: str) -> Lease | None:
        """End the kernel's lease, if it has one."""
        lease = self.get(kernel_id)
        if lease is None:
            return None
        over = advance(lease, LeaseEvent.RELEASE, now_s=self._clock())
        self._before_move.pop(kernel_id, None)
        del self._leases[kernel_id]
        await asyncio.to_thread(self._store.save_lease, over)
        return over

    def _need(self, kernel_id: str) -> Lease:
        lease = self.get(kernel_id)
        if lease is None:
            raise NotFoundError(f"kernel {kernel_id} has no lease")
        return lease

    async def _epoch(self) -> int:
        return await asyncio.to_thread(self._store.next_epoch)

    async def _put(self, lease: Lease) -> Lease:
        self._leases[lease.kernel_id] = lease
        await asyncio.to_thread(self._store.save_lease, lease)
        return lease
