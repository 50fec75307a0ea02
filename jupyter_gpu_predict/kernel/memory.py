"""How much memory a cell took at its peak."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from .offload.holdings import scan
from .offload.loaded import loaded_torch
from .offload.simulated import trim_heap

SCAN_SHARE = 0.1
"""A scan may cost this share of the cell that it measures; else the last known figure serves."""

TRIM_BYTES = 8 << 20
"""Change of resident memory from which a cell is worth the milliseconds of a scan and a trim."""


@dataclass(frozen=True, slots=True)
class Peak:
    """Memory of one cell run.

    `peak_bytes` and `end_bytes` are device memory and `source` names how the peak was measured:
    ``"torch.cuda"``, or another type of device; ``"storages+VmHWM"`` (simulated: storages, plus
    what the process's resident memory rose above both ends, if by more than `TRIM_BYTES`);
    ``"storages"`` (the same without the transient, where the kernel does not let the high-water
    mark be reset); ``"none"`` (no torch, so no device memory).
    `host_peak_bytes` is the process's peak resident memory during the run. `exact` is false where
    `end_bytes` is the figure of the last scan, because another would have cost too much.
    """

    peak_bytes: int
    end_bytes: int
    source: str
    host_peak_bytes: int
    exact: bool


class PeakMeter:
    """Measures each cell between `begin` and `end`.

    Resetting the process's high-water mark also resets what ``resource.getrusage`` reports as
    ``ru_maxrss``.

    Parameters
    ----------
    device : str
        ``"simulated"``, or a type of device of torch's such as ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._used = 0
        self._count = 0
        self._cost_s = 0.0
        self._began_s = 0.0
        self._start_used = 0
        self._start_rss = 0
        self._can_reset = True

    def begin(self) -> None:
        """Start to measure."""
        module = device_in_use(self.device)
        if module is not None:
            module.reset_peak_memory_stats()
        self._can_reset = _reset_high_water()
        self._start_rss = 0 if loaded_torch() is None else _resident()[0]
        self._start_used = self._used
        self._began_s = time.perf_counter()

    def end(self) -> Peak:
        """Stop and return what was found; costs a scan only where the cell was long enough."""
        elapsed = time.perf_counter() - self._began_s
        rss, high = _resident()
        torch = loaded_torch()
        if torch is None:
            return Peak(0, 0, "none", high, True)
        if self.device != "simulated":
            source = f"torch.{self.device}"
            module = device_in_use(self.device)
            if module is None:
                return Peak(0, 0, source, high, True)
            peak, used = int(module.max_memory_allocated()), int(module.memory_allocated())
            return Peak(peak, used, source, high, True)
        # Whatever a short cell took or freed of any size shows in resident memory.
        moved = max(high - self._start_rss, self._start_rss - rss) > TRIM_BYTES
        exact = moved or self._cost_s <= SCAN_SHARE * elapsed
        if exact:
            self._scan()
        peak = max(self._start_used, self._used)
        if not self._can_reset:
            return Peak(peak, self._used, "storages", high, exact)
        if self._count and high - self._start_rss > TRIM_BYTES:
            # The heap keeps freed blocks resident, and they would pass for memory still in use.
            trim_heap()
            rss, _ = _resident()
            peak += max(0, high - max(self._start_rss, rss))
        return Peak(peak, self._used, "storages+VmHWM", high, exact)

    def refresh(self) -> int:
        """Scan now, between cells, and return the device memory in use, in bytes.

        On a simulated GPU free heap memory goes back to the system as well: what a cell takes
        and frees is seen only where it makes resident memory grow.
        """
        if self.device != "simulated":
            module = device_in_use(self.device)
            return 0 if module is None else int(module.memory_allocated())
        if loaded_torch() is not None:
            self._scan()
            trim_heap()
        return self._used

    def _scan(self) -> None:
        started = time.perf_counter()
        holdings = scan(self.device)
        self._used, self._count = holdings.used_bytes, len(holdings.storages)
        self._cost_s = time.perf_counter() - started


def device_module(device: str) -> Any:
    """Return what ``torch.cuda`` is for CUDA, for that type of device.

    ``None`` for simulated GPUs, and while torch is not loaded or knows no such device.
    """
    torch = None if device == "simulated" else loaded_torch()
    return getattr(torch, device, None)


def device_in_use(device: str) -> Any:
    """Return `device_module` where this process has initialised the device, else ``None``."""
    module = device_module(device)
    return module if module is not None and module.is_initialized() else None


def _reset_high_water() -> bool:
    """Set the process's resident high-water mark to its present resident memory."""
    try:
        fd = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"5")
        finally:
            os.close(fd)
    except OSError:
        return False
    return True


def _resident() -> tuple[int, int]:
    """Return the resident memory and its high-water mark in bytes."""
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 1 << 14)
    finally:
        os.close(fd)
    return _field(text, b"VmRSS:"), _field(text, b"VmHWM:")


def _field(text: bytes, name: bytes) -> int:
    start = text.find(name)
    if start < 0:
        return 0
    return int(text[start + len(name) : text.index(b"kB", start)]) * 1024
