"""MIG slices through NVML: each is a GPU of its own, with the health of the one it is cut from."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core.model import GpuStatus
from .nvml_reading import Asking, GpuGoneError, KnownGpu, lost_status, memory, processes


def slices_of(nvml: Any, gpu: KnownGpu) -> list[KnownGpu]:
    """Return the slices of a GPU that this user may see, and note whether it is in MIG mode.

    Raises
    ------
    NVMLError
        If the GPU knows MIG and does not tell its slices: it must not be taken for a whole one.
    """
    try:
        gpu.cut = nvml.nvmlDeviceGetMigMode(gpu.handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError as error:
        if error.value in {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_NO_PERMISSION,
        }:
            return []
        raise
    if not gpu.cut:
        return []
    found: list[tuple[int | None, KnownGpu]] = []
    for slot in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu.handle)):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, slot)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError as error:
            # No slice here, or one that somebody else's container has to itself.
            if error.value in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION}:
                continue
            raise
        part = KnownGpu(
            uuid,
            gpu.index,
            _name(nvml, gpu, handle),
            handle=gpu.handle,
            parent=gpu.uuid,
            slot=slot,
        )
        instance: int | None = None
        with contextlib.suppress(nvml.NVMLError):
            part.total_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        with contextlib.suppress(nvml.NVMLError):
            instance = int(nvml.nvmlDeviceGetGpuInstanceId(handle))
        found.append((instance, part))
    # Compute instances of one GPU instance have its memory in common: each is given its share.
    numbers = Counter(instance for instance, _ in found if instance is not None)
    for instance, part in found:
        part.shares = 1 if instance is None else numbers[instance]
        part.total_bytes //= part.shares
    return [part for _, part in found]


def read_slice(nvml: Any, gpu: KnownGpu) -> GpuStatus:
    """Return what a slice tells itself: its memory and its processes.

    Raises
    ------
    DriverGoneError
        If the driver went away meanwhile.
    """
    asking = Asking(nvml)
    status = GpuStatus(
        gpu.uuid, gpu.index, gpu.name, gpu.total_bytes, simulated=False, parent=gpu.parent
    )
    try:
        handle = _handle(asking, gpu)
        if handle is None:
            return replace(status, problems=tuple(asking.problems))
        used_bytes = memory(asking, gpu, handle)
        use = processes(asking, handle)
    except GpuGoneError as error:
        return lost_status(gpu, f"The MIG slice is gone: {error}.", asking.problems)
    if gpu.shares > 1:
        gpu.total_bytes //= gpu.shares
        used_bytes = sum(size for _, size in use.processes)
    return replace(
        status,
        total_bytes=gpu.total_bytes,
        used_bytes=used_bytes,
        processes=use.processes,
        problems=tuple(asking.problems),
        mps=use.mps,
    )


def shown(known: Mapping[str, KnownGpu], last: Mapping[str, GpuStatus]) -> Iterator[GpuStatus]:
    """Yield what can be leased: whole GPUs and, in place of those in MIG mode, their slices."""
    parents = {gpu.parent for gpu in known.values()}
    for uuid, status in last.items():
        gpu = known[uuid]
        if gpu.parent is not None:
            yield _with_parent(status, last.get(gpu.parent))
        elif not gpu.cut:
            yield status
        elif gpu.switched:
            yield lost_status(gpu, "It was switched to MIG mode; its slices stand in its place.")
        elif uuid not in parents:
            problem = "It is in MIG mode and has no slices: create some (nvidia-smi mig -cgi … -C)."
            yield replace(status, total_bytes=0, problems=(problem, *status.problems))


def _with_parent(status: GpuStatus, parent: GpuStatus | None) -> GpuStatus:
    if parent is None:
        return status
    status = replace(
        status,
        health=parent.health,
        temperature_c=parent.temperature_c,
        power_w=parent.power_w,
        energy_j=parent.energy_j,
        problems=(*status.problems, *parent.problems),
    )
    if not parent.lost or status.lost:
        return status
    # What it told last was told before its GPU was found lost.
    return replace(status, lost=True, used_bytes=None, processes=())


def _handle(asking: Asking, gpu: KnownGpu) -> Any:
    """Return the slice's present handle, ``None`` if that cannot be told.

    Handles of slices end with every new cut, and another slice may then stand in the same place.

    Raises
    ------
    GpuGoneError
        If the GPU has no such slice any more.
    """
    nvml, what = asking.nvml, "MIG slice"
    places = asking.ask("number of MIG slices", "nvmlDeviceGetMaxMigDeviceCount", gpu.handle)
    unsure = places is None
    for slot in (gpu.slot, *(n for n in range(places or 0) if n != gpu.slot)):
        try:
            function = "nvmlDeviceGetMigDeviceHandleByIndex"
            handle = asking.call(function, gpu.handle, slot)
            function = "nvmlDeviceGetUUID"
            if str(asking.call(function, handle)) == gpu.uuid:
                gpu.slot = slot
                return handle
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NO_PERMISSION and slot != gpu.slot:
                continue
            if error.value not in {nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_ERROR_NOT_SUPPORTED}:
                asking.problems.append(asking.sentence(what, function, error))
                unsure = True
    if unsure:
        return None
    raise GpuGoneError("its GPU was cut anew or left MIG mode")


def _name(nvml: Any, gpu: KnownGpu, handle: Any) -> str:
    """Return a name that tells the kind of slice, e.g. ``NVIDIA A100-SXM4-40GB MIG 1g.5gb``."""
    name = gpu.name
    with contextlib.suppress(nvml.NVMLError):
        name = str(nvml.nvmlDeviceGetName(handle))
    if "MIG" in name:
        return name
    with contextlib.suppress(nvml.NVMLError):
        has = nvml.nvmlDeviceGetAttributes_v2(handle)
        size = round(has.memorySizeMB / 1024)
        parts, of = has.computeInstanceSliceCount, has.gpuInstanceSliceCount
        kind = f"{of}g" if parts == of else f"{parts}c.{of}g"
        return f"{name} MIG {kind}.{size}gb"
    return f"{name} MIG"
