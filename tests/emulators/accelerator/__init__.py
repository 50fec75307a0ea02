"""A torch accelerator without hardware: the device type ``emu``.

It stands in for CUDA where there is none. What it emulates faithfully: several devices of given
capacity that all processes share, a caching allocator with CUDA's segments and blocks, torch's
own out-of-memory error, generators, streams, events, autocast, pinned memory, device loss, and
memory that returns to the system when a segment is released. What it does not: work is done when
a call returns, so streams never run side by side; operators run on the CPU; pinned memory is not
locked.

`load` builds and registers it in this process. `Devices` describes a machine's devices for the
processes of a test and says who holds what of them; `Worker` is such a process. A test process
should not `load` it itself: the device type stays for all tests after it.
"""

from __future__ import annotations

from .build import NoCompilerError, build
from .devices import Devices
from .loading import autoload, load
from .worker import FailedInWorkerError, Worker

__all__ = [
    "Devices",
    "FailedInWorkerError",
    "NoCompilerError",
    "Worker",
    "autoload",
    "build",
    "load",
]
