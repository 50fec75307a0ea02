"""Loads NVML and lists its GPUs."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import DeviceError
from .nvml_mig import slices_of
from .nvml_reading import KnownGpu
from .visible import visible_groups


@dataclass(frozen=True, slots=True)
class Listing:
    """What NVML says when it is loaded.

    `cuda` is the newest CUDA the driver runs, ``None`` if it does not say; `gpus` are the physical
    GPUs, `slices` by their uuids the MIG slices of those that are cut into some; `unreadable` are
    the index and the reason of GPUs that do not even tell their uuid.
    """

    nvml: Any
    driver: str
    cuda: tuple[int, int] | None
    gpus: tuple[KnownGpu, ...]
    slices: Mapping[str, tuple[KnownGpu, ...]]
    unreadable: tuple[tuple[int, str], ...]

    @property
    def parts(self) -> tuple[KnownGpu, ...]:
        """Every slice."""
        return tuple(part for cut in self.slices.values() for part in cut)

    def visible(self, setting: str | None) -> list[list[str]]:
        """Return what each entry of a ``CUDA_VISIBLE_DEVICES`` allows; see `visible_groups`."""
        cut = {uuid: [part.uuid for part in parts] for uuid, parts in self.slices.items()}
        return visible_groups([gpu.uuid for gpu in self.gpus], setting, cut)

    def allowed(self, setting: str | None) -> set[str]:
        """Return the uuids to read: what is visible, and the GPUs that visible slices are of."""
        seen = {uuid for group in self.visible(setting) for uuid in group}
        seen |= {part.parent for part in self.parts if part.uuid in seen and part.parent}
        # That a GPU in MIG mode has no slices is to be told as well.
        return seen if setting is not None else seen | self.slices.keys()


def list_gpus() -> Listing:
    """Load NVML and list its GPUs; NVML has to be let go by `let_go` afterwards.

    Raises
    ------
    DeviceError
        If nvidia-ml-py is not installed, or no driver answers; NVML is let go then.
    """
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise DeviceError(f"nvidia-ml-py cannot be imported ({error})") from error
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise DeviceError(f"nvmlInit answered {error} (NVML {error.value})") from error
    gpus: list[KnownGpu] = []
    slices: dict[str, tuple[KnownGpu, ...]] = {}
    unreadable: list[tuple[int, str]] = []
    driver, cuda = "", None
    try:
        with contextlib.suppress(nvml.NVMLError):
            driver = str(nvml.nvmlSystemGetDriverVersion())
        with contextlib.suppress(nvml.NVMLError):
            # 13000 is 13.0 and 12080 is 12.8 (`NVML_CUDA_DRIVER_VERSION_MAJOR` of nvml.h).
            number = int(nvml.nvmlSystemGetCudaDriverVersion())
            cuda = number // 1000, number % 1000 // 10
        for index in range(nvml.nvmlDeviceGetCount()):
            found = _identify(nvml, index)
            if isinstance(found, tuple):
                gpu, parts = found
                gpus.append(gpu)
                if gpu.cut:
                    slices[gpu.uuid] = parts
            elif found is not None:
                unreadable.append((index, found))
    except nvml.NVMLError as error:
        let_go(nvml, ())
        raise DeviceError(f"its GPUs cannot be listed: {error} (NVML {error.value})") from error
    return Listing(nvml, driver, cuda, tuple(gpus), slices, tuple(unreadable))


def let_go(nvml: Any, events: Iterable[Any]) -> None:
    """Free sets of events and shut NVML down, as far as it still answers."""
    for event_set in events:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlEventSetFree(event_set)
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()


def _identify(nvml: Any, index: int) -> tuple[KnownGpu, tuple[KnownGpu, ...]] | str | None:
    """Return a GPU and its slices, why it cannot be told, or ``None`` for one not ours to see."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = KnownGpu(str(nvml.nvmlDeviceGetUUID(handle)), index, "NVIDIA GPU", handle=handle)
        with contextlib.suppress(nvml.NVMLError):
            gpu.name = str(nvml.nvmlDeviceGetName(handle))
        slices = tuple(slices_of(nvml, gpu))
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NO_PERMISSION:
            return None
        if error.value in {nvml.NVML_ERROR_UNINITIALIZED, nvml.NVML_ERROR_DRIVER_NOT_LOADED}:
            raise
        return f"{error} (NVML {error.value})"
    if not gpu.cut:
        with contextlib.suppress(nvml.NVMLError):
            gpu.total_bytes = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return gpu, slices
