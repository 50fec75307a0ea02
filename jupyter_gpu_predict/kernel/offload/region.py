"""Host memory that stands in for device memory while it is taken back."""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from bisect import bisect_right
from collections.abc import Callable

ALIGN_BYTES = 64
"""Alignment of a storage inside a region: what torch's own CPU allocator gives
(``c10/core/alignment.h``), so that kernels chosen for aligned memory stay right."""


class Region(mmap.mmap):
    """A mapping that lives exactly as long as some storage points into it.

    Mappings are private: what is written to a suspended tensor stays in this process, so a forked
    child (a data loader's worker) does not write into its parent's tensors.
    """

    base: int
    span: int
    on_drop: Callable[[], None] | None
    owner: int

    def enroll(self) -> None:
        """Take down the address and make the region known to `Ranges`."""
        window = ctypes.c_char.from_buffer(self)
        self.base = ctypes.addressof(window)
        self.span = len(self)
        self.on_drop = None
        self.owner = os.getpid()
        _REGIONS.add(self)

    def holds(self, address: int) -> bool:
        """Return whether `address` lies in this region."""
        return self.base <= address < self.base + self.span

    def keep_from_children(self) -> None:
        """Let a forked child not have it, as it has none of the device's memory either.

        Pages that a device reads and writes must not be made copies of by a child's birth.
        """
        self.madvise(mmap.MADV_DONTFORK)
        _UNFORKED.add(self)

    def __del__(self) -> None:
        drop = getattr(self, "on_drop", None)
        if drop is not None and self.owner == os.getpid():
            drop()


_REGIONS: weakref.WeakSet[Region] = weakref.WeakSet()
_UNFORKED: weakref.WeakSet[Region] = weakref.WeakSet()
_not_mapped_here: list[Region] = []


def _in_forked_child() -> None:
    # What is not mapped here must not be unmapped either: something else may be there by then.
    _not_mapped_here.extend(_UNFORKED)


os.register_at_fork(after_in_child=_in_forked_child)


class Ranges:
    """The addresses of the regions that live now, to look many addresses up in."""

    def __init__(self) -> None:
        living = sorted(_REGIONS, key=lambda r: r.base)
        self._starts = [r.base for r in living]
        self._ends = [r.base + r.span for r in living]

    def hold(self, address: int) -> bool:
        """Return whether `address` lies in a region."""
        place = bisect_right(self._starts, address) - 1
        return place >= 0 and address < self._ends[place]


def in_host_copy(address: int) -> bool:
    """Return whether `address` lies in a region that lives now."""
    return any(r.holds(address) for r in list(_REGIONS))
