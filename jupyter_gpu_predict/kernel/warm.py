"""Start a device's context and its libraries before a cell pays for them.

The first use of a GPU creates the process's context; the first product of two matrices loads cuBLAS
and the first convolution cuDNN. Each takes part of a second or more, and memory that stays.
Unproven on CUDA, where the tests marked ``gpu`` are its proof.
"""

from __future__ import annotations

import os
import time

from .offload.loaded import loaded_torch

_SIDE = 8
"""Side of the matrices and images that are worked on: any size loads the libraries."""

_warm: set[tuple[int, str]] = set()


def is_warm(device: str) -> bool:
    """Return whether this process has warmed the device up."""
    return (os.getpid(), device) in _warm


def warm_up(device: str) -> float:
    """Create the context of the current `device` and load its libraries; return the seconds.

    Nothing of the user's is changed: no random number is drawn, gradients and autocast are left
    alone, and what was allocated is given back. 0 without torch, without a device, in a forked
    child, or where it was done before.

    Parameters
    ----------
    device
        Type of torch device, such as ``"cuda"``.

    Raises
    ------
    RuntimeError
        What torch raises where the device has no memory or is lost.
    """
    torch = loaded_torch()
    if torch is None or device == "simulated" or is_warm(device):
        return 0.0
    module = getattr(torch, device)
    if not module.is_available() or module._is_in_bad_fork():
        return 0.0
    started = time.perf_counter()
    plain = torch.autocast(device, enabled=False)
    with torch._C.DisableTorchFunction(), torch.inference_mode(), plain:
        module.init()
        matrix = torch.zeros((_SIDE, _SIDE), device=device, dtype=torch.float32)
        torch.mm(matrix, matrix)
        image = matrix.view(1, 1, _SIDE, _SIDE)
        torch.nn.functional.conv2d(image, image[:, :, :3, :3])
    module.synchronize()
    del matrix, image
    module.empty_cache()
    _warm.add((os.getpid(), device))
    return time.perf_counter() - started
