"""What is CUDA's alone: page-locking, and whether a GPU can work on host memory in place.

Unproven: written from documented behaviour and not yet run on a GPU.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from ...errors import StorageFullError
from .region import Region

_PORTABLE_AND_MAPPED = 1 | 2  # cudaHostRegisterPortable | cudaHostRegisterMapped
_PAGEABLE_MEMORY_ACCESS = 88  # CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS
_REGISTERED_HOST_POINTER = 91  # CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM


def lock_pages(torch: Any, region: Region) -> None:
    """Lock a region's pages, so that every GPU can use it under its host address.

    Raises
    ------
    StorageFullError
        If the system does not let so much be locked.
    """
    runtime = torch.cuda.cudart()
    code = int(runtime.cudaHostRegister(region.base, region.span, _PORTABLE_AND_MAPPED))
    if code:
        raise StorageFullError(
            f"the host does not let {region.span} bytes be page-locked (cudaHostRegister says "
            f"{code}); raise the memlock limit or free host memory"
        )
    region.on_drop = functools.partial(_unlock, torch, region.base)
    region.keep_from_children()


def _unlock(torch: Any, address: int) -> None:
    # A kernel in flight may still be at a tensor that was deleted.
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)
    torch.cuda.cudart().cudaHostUnregister(address)


def why_not_in_place(device: int) -> str | None:
    """Return why kernels on a GPU cannot use locked host memory under its host address."""
    if _attribute(device, _REGISTERED_HOST_POINTER):
        return None
    return f"GPU {device} cannot use host memory under its host address (unified addressing)"


def why_not_pageable(device: int) -> str | None:
    """Return why kernels on a GPU cannot use memory that is mapped from a file."""
    if _attribute(device, _PAGEABLE_MEMORY_ACCESS):
        return None
    return f"GPU {device} cannot use pageable host memory in place"


@functools.cache
def _attribute(device: int, number: int) -> int:
    """Return a device attribute of the driver's, 0 if it cannot be had."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    handle, value = ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGet(ctypes.byref(handle), device):
        return 0
    if driver.cuDeviceGetAttribute(ctypes.byref(value), number, handle):
        return 0
    return value.value
