"""Chooses between real and simulated GPUs, and says why."""

from __future__ import annotations

import os
from collections import Counter

from ..control.ports import DeviceBackend
from ..core.model import MIB
from ..core.sizes import format_bytes
from ..errors import BadInputError, DeviceError
from .nvml import REMEDY, NvmlGpus
from .simulated import SimulatedGpus

BACKENDS = ("auto", "nvml", "simulated")


def choose_backend(
    backend: str = "auto",
    *,
    simulated_count: int = 2,
    simulated_memory_bytes: int = 512 * MIB,
    simulated_persist: str | os.PathLike[str] | None = None,
    torch_device: str = "cuda",
) -> tuple[DeviceBackend, str]:
    """Return the GPUs to use, and a sentence that says which they are and why.

    Parameters
    ----------
    backend
        ``"nvml"``: real GPUs; ``"simulated"``; ``"auto"``: real ones where the NVIDIA driver lists
        any, simulated ones elsewhere.
    simulated_count, simulated_memory_bytes
        Number of simulated GPUs and the memory of each.
    simulated_persist
        File that keeps the scripted health of simulated GPUs over a restart.
    torch_device
        Type of torch device that the GPUs which NVML lists are in a kernel.

    Raises
    ------
    BadInputError
        If `backend` is none of these, or the simulated GPUs are malformed.
    DeviceError
        If `backend` is ``"nvml"`` and there is no GPU to use.
    """
    if backend not in BACKENDS:
        raise BadInputError(
            f"The device backend cannot be {backend!r}: use one of {', '.join(BACKENDS)}."
        )
    why = "Simulated GPUs were asked for"
    if backend != "simulated":
        real = NvmlGpus(torch_device=torch_device)
        why = _why_not(real)
        if not why:
            return real, _sentence(real)
        real.close()
        if backend == "nvml":
            raise DeviceError(f"{why}. {REMEDY}")
    gpus = SimulatedGpus(simulated_count, simulated_memory_bytes, simulated_persist)
    noun = "GPU" if simulated_count == 1 else "GPUs"
    size = format_bytes(simulated_memory_bytes)
    return gpus, f"{why}: using {simulated_count} simulated {noun} of {size} host memory each."


def _why_not(real: NvmlGpus) -> str:
    """Load NVML; return why real GPUs cannot be used, or an empty string if they can."""
    try:
        real.start()
    except DeviceError:
        return f"No NVIDIA driver answered ({real.down_reason})"
    if real.read():
        return ""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if setting is None else f" that CUDA_VISIBLE_DEVICES={setting!r} allows"
    return f"The NVIDIA driver {real.driver_version} lists no GPU{hidden}"


def _sentence(real: NvmlGpus) -> str:
    names = Counter(status.name for status in real.read())
    listed = ", ".join(f"{number} x {name}" for name, number in names.items())
    return f"The NVIDIA driver {real.driver_version} answered: using {listed}."
