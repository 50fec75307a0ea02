"""Host memory that stands in for device memory while it is taken back."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Sequence

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

    def enroll(self, on_drop: Callable[[], None] | None = None) -> None:
        """Take down the address and make the region known to `holds`."""
        window = ctypes.c_char.from_buffer(self)
        self.base = ctypes.addressof(window)
        self.span = len(self)
        self.on_drop = on_drop
        _REGIONS.add(self)

    def __del__(self) -> None:
        drop = getattr(self, "on_drop", None)
        if drop is not None:
            drop()


_REGIONS: weakref.WeakSet[Region] = weakref.WeakSet()


def ranges() -> list[tuple[int, int]]:
    """Return the address ranges ``[start, end)`` of all living regions."""
    return [(r.base, r.base + r.span) for r in _REGIONS]


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return the offset of each storage in a region and the region's size, in bytes."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGN_BYTES) * ALIGN_BYTES
    return offsets, end
