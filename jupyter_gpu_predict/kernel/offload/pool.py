"""Host regions that are kept for the next time: locking their pages is slow, reuse is not."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Sequence

from ...errors import StorageFullError
from .host_memory import host_memory
from .region import Region

KEEP_SHARE = 0.125
"""At most this share of the host's memory is kept in one process while nothing is suspended."""

BUSY_SHARE = 0.5
"""Nothing is kept while less than this share of the host's memory is free."""

GRAIN_BYTES = 2 << 20
"""Regions are multiples of this, the size of a huge page."""


class Pool:
    """Anonymous regions, made by need and kept up to a limit.

    Every step on the list is one that no other thread gets in between, because regions come back
    wherever the last storage that points to them happens to die.

    Parameters
    ----------
    prepare
        Is called once with each new region, e.g. to lock its pages.
    """

    def __init__(self, prepare: Callable[[Region], None] = lambda region: None) -> None:
        self._prepare = prepare
        self._kept: list[Region] = []

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept and hold nothing."""
        return sum(r.span for r in list(self._kept))

    def lend(self, sizes: Sequence[int]) -> list[Loan]:
        """Return a region of at least each size, in bytes; what they hold is unknown.

        Raises
        ------
        StorageFullError
            If the host has no memory for them, or `prepare` refuses. Nothing is kept then.
        """
        loans: list[Loan | None] = [self._reused(_rounded(n)) for n in sizes]
        if None in loans:
            # What is kept and did not fit must not be what the others lack.
            self.drop()
        return [
            Loan(self, self._new(_rounded(n))) if loan is None else loan
            for n, loan in zip(sizes, loans, strict=True)
        ]

    def give(self, region: Region) -> None:
        """Keep a region that nothing points to any more, or let it go."""
        host = host_memory()
        limit = KEEP_SHARE * host.total_bytes
        idle = host.available_bytes >= BUSY_SHARE * host.total_bytes
        if idle and self.kept_bytes + region.span <= limit:
            self._kept.append(region)

    def drop(self) -> None:
        """Let go of all that is kept."""
        self._kept.clear()

    def _reused(self, nbytes: int) -> Loan | None:
        fits = [r for r in list(self._kept) if nbytes <= r.span <= 2 * nbytes]
        for region in sorted(fits, key=lambda r: r.span):
            try:
                self._kept.remove(region)
            except ValueError:
                continue  # another thread was faster
            return Loan(self, region)
        return None

    def _new(self, nbytes: int) -> Region:
        try:
            region = Region(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as e:
            raise StorageFullError(
                f"the host has no {nbytes} bytes to hold device memory ({e.strerror}); free host "
                "memory"
            ) from e
        region.enroll()
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a system without huge pages
                region.madvise(mmap.MADV_HUGEPAGE)
        self._prepare(region)
        return region


class Loan:
    """A region of a pool for as long as something refers to this object."""

    __slots__ = ("_pool", "region")

    def __init__(self, pool: Pool, region: Region) -> None:
        self._pool = pool
        self.region = region

    def holds(self, address: int) -> bool:
        """Return whether `address` lies in the region."""
        return self.region.holds(address)

    def __del__(self) -> None:
        self._pool.give(self.region)


def _rounded(nbytes: int) -> int:
    return -(-nbytes // GRAIN_BYTES) * GRAIN_BYTES
