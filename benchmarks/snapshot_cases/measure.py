"""Time, memory and quiet around one measurement."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SETTLED_KB = 2048
SETTLE_LIMIT_S = 1.0


@dataclass
class Figures:
    """What a piece of work took: seconds, and MB at its peak over what was there before."""

    seconds: float = 0.0
    extra_mb: float = 0.0


def settle() -> None:
    """Write out what is dirty, so that no measurement pays for another's bytes.

    What other programs go on writing is waited for only so long.
    """
    gc.collect()
    os.sync()
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while _field("/proc/meminfo", "Dirty") + _field("/proc/meminfo", "Writeback") > SETTLED_KB:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    time.sleep(0.1)


def settle_with_room(folder: str, nbytes: int) -> None:
    """Settle with memory for `nbytes` of a file at hand.

    A virtual machine gives memory that has been free for some seconds back to its host, and a
    file's first page in such memory costs several times what copying into it does. Whoever
    measures first after a pause would pay that for all. So a file is written and removed.
    """
    path = os.path.join(folder, ".room")
    # Not from `malloc`, whose thresholds change with what is freed.
    with open(path, "wb", buffering=0) as file, mmap.mmap(-1, 8 << 20) as block:
        for _ in range(0, nbytes, len(block)):
            file.write(block)
    os.sync()
    os.unlink(path)
    settle()


@contextmanager
def measured() -> Iterator[Figures]:
    """Time the block and take its peak memory."""
    figures = Figures()
    reset_peak()
    before = resident_mb()
    start = time.perf_counter()
    yield figures
    figures.seconds = time.perf_counter() - start
    figures.extra_mb = peak_mb() - before


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_mb() -> float:
    return _field("/proc/self/status", "VmHWM") * 1024 / 1e6


def resident_mb() -> float:
    return _field("/proc/self/status", "VmRSS") * 1024 / 1e6


def trim() -> None:
    """Give freed memory back to the system, so that what is resident is what is used."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def fsync_path(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def bytes_under(path: str) -> int:
    """Return the size of a file, or of all files below a folder."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    found = 0
    for folder, _, files in os.walk(path):
        found += sum(os.path.getsize(os.path.join(folder, name)) for name in files)
    return found


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _field(path: str, name: str) -> int:
    with open(path) as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    raise LookupError(f"{path} has no {name}")
