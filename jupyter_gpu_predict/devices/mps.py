"""GPUs that processes share through NVIDIA's MPS: whether they do, and a new process's limits.

The daemon is an administrator's; it is never started, asked or stopped here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..core.model import MIB

MEMORY_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
THREAD_SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"

CONTEXT_BYTES = 512 * MIB
"""What CUDA allocates for itself counts against the limit (MPS guide, "Pinned device memory
limit"); a context with cuBLAS takes 300 to 500 MiB."""

OVERLAP = 2.0
"""Threads given for each share of memory: the MPS guide advises twice an even share, since
processes are seldom at work all at once."""

_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
_DEFAULT_PIPES = "/tmp/nvidia-mps"  # noqa: S108 - where MPS keeps its pipes unless told otherwise
_PID_FILE = "nvidia-cuda-mps-control.pid"


def daemon_runs(environ: Mapping[str, str]) -> bool:
    """Return whether kernels started with `environ` would use their GPUs through MPS.

    The daemon's pipes stay behind when it is killed, so the process that its pid file names must
    live. One in another container is not seen; NVML lists its processes.
    """
    path = Path(environ.get(_PIPES) or _DEFAULT_PIPES) / _PID_FILE
    try:
        os.kill(_positive(path.read_text(encoding="ascii")), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def limits(lease_bytes: int, total_bytes: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hold a new process to its lease under MPS.

    They count from the start of its CUDA context to its end: the lease cannot grow beyond them in
    this process, and its next start takes what it was seen to need. What an administrator has set
    in `environ` stays. Without a lease there is nothing to hold to.

    Parameters
    ----------
    lease_bytes, total_bytes
        Memory of the lease and of the GPU.
    environ
        The server's environment, which the process inherits.
    """
    if lease_bytes <= 0 or total_bytes <= 0:
        return {}
    most = min(lease_bytes + CONTEXT_BYTES, total_bytes)
    share = math.ceil(100 * OVERLAP * lease_bytes / total_bytes)
    wanted = {
        # The GPU is the process's only one, so its number there is 0.
        MEMORY_LIMIT: f"0={math.ceil(most / MIB)}M",
        THREAD_SHARE: str(min(100, max(1, share))),
    }
    return {name: value for name, value in wanted.items() if name not in environ}


def limit_of(pid: int | None) -> int | None:
    """Return what a process may have of its GPU at most under MPS, ``None``: all, or not known."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    pairs = (entry.partition("=") for entry in os.fsdecode(raw).split("\0"))
    return limit_bytes({name: value for name, _, value in pairs})


def limit_bytes(environ: Mapping[str, str]) -> int | None:
    """Return the limit on a process's first GPU that its environment sets."""
    for part in environ.get(MEMORY_LIMIT, "").split(","):
        gpu, _, size = part.partition("=")
        number, unit = size.strip().upper().removesuffix("B"), 1
        if number.endswith(("M", "G")):
            number, unit = number[:-1], MIB if number[-1] == "M" else 1024 * MIB
        if gpu.strip() == "0" and number.isdecimal():
            return int(number) * unit
    return None


def without_limits(env: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return `env` without the limits of an earlier lease; an administrator's own stay."""
    ours = {MEMORY_LIMIT, THREAD_SHARE} - set(environ)
    return {name: value for name, value in env.items() if name not in ours}


def _positive(text: str) -> int:
    pid = int(text)
    if pid <= 0:
        raise ValueError("no pid of a process")
    return pid
