"""The least that moving bytes out and back can cost, first touch included."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from typing import Any

import torch

BATCH = 1024
MOST = 1 << 30  # one write moves less than 2 GiB


def plain_copy(device: str, storages: Sequence[Any], folder: str) -> tuple[float, float]:
    """Return the seconds of a copy out of and back into memory that was never touched."""
    if device == "simulated":
        return _through_a_file(storages, folder)
    return _through_host_memory(device, storages)


def _through_a_file(storages: Sequence[Any], folder: str) -> tuple[float, float]:
    sizes = [s.nbytes() for s in storages]
    pieces = [
        (ctypes.c_char * min(MOST, n - at)).from_address(s.data_ptr() + at)
        for s, n in zip(storages, sizes, strict=True)
        for at in range(0, n, MOST)
    ]
    fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    started = time.perf_counter()
    for at in range(0, len(pieces), BATCH):
        part = pieces[at : at + BATCH]
        if sizes[0] >= MOST:
            for piece in part:
                if os.write(fd, piece) != len(piece):
                    raise OSError("short write: choose a folder with more room")
        elif os.writev(fd, part) != sum(map(len, part)):
            raise OSError("short write: choose a folder with more room")
    out = time.perf_counter() - started
    mapped = mmap.mmap(
        fd, sum(sizes), flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    os.close(fd)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    started, fresh = time.perf_counter(), []
    for n in sizes:
        fresh.append(torch.UntypedStorage(n))
        ctypes.memmove(fresh[-1].data_ptr(), base, n)
        base += n
    return out, time.perf_counter() - started


def _through_host_memory(device: str, storages: Sequence[Any]) -> tuple[float, float]:
    module = getattr(torch, device)
    tensors = [torch.empty(0, dtype=torch.uint8, device=s.device).set_(s) for s in storages]
    total = sum(t.numel() for t in tensors)
    module.synchronize()
    # Page-locking is part of it: memory that was never touched is not locked either.
    started, at = time.perf_counter(), 0
    host = torch.empty(total, dtype=torch.uint8, pin_memory=device == "cuda")
    for t in tensors:
        host[at : at + t.numel()].copy_(t, non_blocking=True)
        at += t.numel()
    module.synchronize()
    out = time.perf_counter() - started
    sizes = [t.numel() for t in tensors]
    # A GPU need not have room for all of it twice.
    tensors.clear()
    started, at, fresh = time.perf_counter(), 0, []
    for n in sizes:
        fresh.append(torch.empty(n, dtype=torch.uint8, device=device))
        fresh[-1].copy_(host[at : at + n], non_blocking=True)
        at += n
    module.synchronize()
    back = time.perf_counter() - started
    fresh.clear()
    module.empty_cache()
    return out, back
