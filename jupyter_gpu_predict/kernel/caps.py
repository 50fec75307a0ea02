"""The most that torch's allocator may take of the GPU in this process."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from .imports import after_import
from .memory import device_in_use, device_module


class Cap:
    """Holds the allocator to what the server said last.

    Parameters
    ----------
    device
        Type of torch device; ``"simulated"`` GPUs have no allocator that could be held.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.bytes: int | None = None
        self.total_bytes: int | None = None
        """What the GPU has; known once a cap is in force."""
        self._lock = threading.Lock()
        self._applied: int | None = None

    def install(self) -> None:
        """Apply a cap that came before torch was there as soon as it is."""
        if self.device != "simulated":
            after_import("torch", lambda torch: self._apply(getattr(torch, self.device, None)))

    def set(self, cap_bytes: int | None) -> int:
        """Take a new cap, in bytes, and return what the allocator has reserved.

        ``None`` leaves it as it is. Safe from any thread, also while a cell runs.
        """
        if cap_bytes is not None:
            self.bytes = cap_bytes
            self._apply(device_module(self.device))
        module = device_in_use(self.device)
        if module is None:
            return 0
        reserved = int(module.memory_reserved())
        if self.bytes is not None and reserved > self.bytes:
            # Blocks that are kept for later are as good as taken for everybody else.
            module.empty_cache()
            reserved = int(module.memory_reserved())
        return reserved

    def _apply(self, module: Any) -> None:
        if module is None or self.bytes is None:
            return
        # Before the device is in use this is queued, since it would start its context.
        module._lazy_call(partial(self._limit, module))

    def _limit(self, module: Any) -> None:
        with self._lock:
            # Of several that were queued only the last one counts.
            if self.bytes is None or self.bytes == self._applied:
                return
            total = self.total_bytes = int(module.get_device_properties(0).total_memory)
            module.set_per_process_memory_fraction(min(1.0, self.bytes / total), 0)
            self._applied = self.bytes
