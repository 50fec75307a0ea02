"""A machine with emulated GPUs on which a whole server with real kernels runs.

`EmulatedMachine` gives the environment in which the server's NVML, the kernels' torch (device type
``emu``) and the driver's checkpoints are stand-ins that agree with each other: memory is kept in
one ledger, by process. No GPU is there and none is touched.
"""

from __future__ import annotations

from .machine import EmulatedMachine

__all__ = ["EmulatedMachine"]
