"""Reads one GPU through NVML, each value on its own: what cannot be read is left out and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..core.model import GpuHealth, GpuStatus, XidEvent
from ..core.risk import RECOVERY_ACTIONS

FIELD_RECOVERY_ACTION = 230
"""``NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`` of nvml.h; older nvidia-ml-py have no name for it."""

_MAX_EVENTS = 64
_MAX_XIDS = 256
_UNCONTAINED_XID = 95


class DriverGoneError(Exception):
    """The driver or the library went away; every handle is void."""


class GpuGoneError(Exception):
    """A GPU does not answer any more."""


@dataclass(slots=True)
class KnownGpu:
    """A GPU that was listed once; `handle` is void whenever the driver went away.

    `cut` is ``None`` for one that knows no MIG mode, else whether it is in that mode, and
    `switched` that it was not when it was first listed. A MIG slice has the uuid of its GPU as
    `parent`, and that one's handle, its `slot` among the slices there, and `shares`, the number of
    slices that share one memory.
    """

    uuid: str
    index: int
    name: str
    total_bytes: int = 0
    handle: Any = None
    events: Any = None
    watched: bool = False
    uncontained: int = 0
    xids: tuple[XidEvent, ...] = ()
    cut: bool | None = None
    switched: bool = False
    parent: str | None = None
    slot: int = 0
    shares: int = 1


class Asking:
    """Asks NVML for one value after the other, and collects why some could not be had."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.problems: list[str] = []
        self._silent = {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_DATA}
        self._outdated = {
            nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
            nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
            nvml.NVML_ERROR_NOT_SUPPORTED,
        }
        self._gpu_gone = {
            nvml.NVML_ERROR_GPU_IS_LOST,
            nvml.NVML_ERROR_RESET_REQUIRED,
            nvml.NVML_ERROR_GPU_NOT_FOUND,
        }
        self._driver_gone = {
            nvml.NVML_ERROR_UNINITIALIZED,
            nvml.NVML_ERROR_DRIVER_NOT_LOADED,
            nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        }

    def ask(self, what: str, function: str, *args: Any) -> Any:
        """Return ``nvml.function(*args)``, or ``None`` if `what` cannot be had.

        That a GPU does not support a call is normal and leaves no problem behind; anything else
        does.

        Raises
        ------
        GpuGoneError, DriverGoneError
            If there is no use in asking on.
        """
        try:
            return self.call(function, *args)
        except self.nvml.NVMLError as error:
            if error.value not in self._silent:
                self.problems.append(self.sentence(what, function, error))
        return None

    def newest(self, what: str, newer: tuple[Any, ...], older: tuple[Any, ...] | None) -> Any:
        """Return what `newer` says, or `older` (``None``: nothing) where that is not known.

        Both are the name of a function and its arguments.
        """
        try:
            return self.call(*newer)
        except self.nvml.NVMLError as error:
            if error.value not in self._outdated:
                self.problems.append(self.sentence(what, newer[0], error))
                return None
        return None if older is None else self.ask(what, *older)

    def call(self, function: str, *args: Any) -> Any:
        """Return ``nvml.function(*args)``; raises what it raises, or that there is no use."""
        call = getattr(self.nvml, function, None)
        if call is None:
            raise self.nvml.NVMLError(self.nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        try:
            return call(*args)
        except self.nvml.NVMLError as error:
            if error.value in self._gpu_gone:
                raise GpuGoneError(f"{function} answered {error} (NVML {error.value})") from error
            if error.value in self._driver_gone:
                raise DriverGoneError(
                    f"{function} answered {error} (NVML {error.value})"
                ) from error
            raise

    def sentence(self, what: str, function: str, error: Any) -> str:
        """Say why `what` could not be had."""
        if error.value == self.nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            return f"The {what} is unknown: the installed NVIDIA driver has no {function}."
        return f"The {what} could not be read: {function} answered {error} (NVML {error.value})."


def read_gpu(nvml: Any, gpu: KnownGpu, clock: Callable[[], float]) -> GpuStatus:
    """Return the status of `gpu`; takes its waiting XID events out of the driver.

    Raises
    ------
    DriverGoneError
        If the driver went away meanwhile.
    """
    asking, started = Asking(nvml), time.perf_counter()
    try:
        # XIDs first: they are the one signal that is told once only.
        _drain_events(asking, gpu, clock)
        status = _values(asking, gpu)
    except GpuGoneError as error:
        return lost_status(gpu, f"The GPU no longer answers: {error}.", asking.problems)
    elapsed_s = time.perf_counter() - started
    return replace(status, health=replace(status.health, query_s=elapsed_s))


def lost_status(gpu: KnownGpu, reason: str, problems: Iterable[str] = ()) -> GpuStatus:
    """Return the status of a GPU of which nothing is left but what was seen before."""
    return GpuStatus(
        uuid=gpu.uuid,
        index=gpu.index,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        simulated=False,
        health=GpuHealth(xids=gpu.xids, ecc_uncontained=gpu.uncontained or None),
        lost=True,
        problems=(reason, *problems),
        parent=gpu.parent,
    )


def _values(asking: Asking, gpu: KnownGpu) -> GpuStatus:
    nvml, handle = asking.nvml, gpu.handle
    used_bytes, load, use = None, None, Use()
    if not gpu.cut:
        # What a GPU that is cut into slices says of its use is the sum of theirs, if it says any.
        used_bytes = memory(asking, gpu, handle)
        load = asking.ask("utilization", "nvmlDeviceGetUtilizationRates", handle)
        use = processes(asking, handle)
    temperature = asking.ask(
        "temperature", "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU
    )
    power_mw = asking.ask("power", "nvmlDeviceGetPowerUsage", handle)
    energy_mj = asking.ask("energy", "nvmlDeviceGetTotalEnergyConsumption", handle)
    health = _health(asking, gpu, temperature)
    return GpuStatus(
        uuid=gpu.uuid,
        index=gpu.index,
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        simulated=False,
        used_bytes=used_bytes,
        utilization=None if load is None else load.gpu / 100,
        temperature_c=health.temperature_c,
        power_w=None if power_mw is None else power_mw / 1000,
        energy_j=None if energy_mj is None else energy_mj / 1000,
        processes=use.processes,
        health=health,
        problems=tuple(asking.problems),
        mps=use.mps,
    )


def memory(asking: Asking, gpu: KnownGpu, handle: Any) -> int | None:
    """Return the bytes in use by `handle`, and bring the GPU's total up to date."""
    info = asking.newest(
        "memory in use",
        ("nvmlDeviceGetMemoryInfo", handle, asking.nvml.nvmlMemory_v2),
        ("nvmlDeviceGetMemoryInfo", handle),
    )
    if info is None:
        if not asking.problems:
            asking.problems.append("The GPU does not report its memory.")
        return None
    # Version 2 tells apart what the driver keeps for itself; nobody can ever be given that.
    gpu.total_bytes = info.total - getattr(info, "reserved", 0)
    return int(info.used)


@dataclass(frozen=True, slots=True)
class Use:
    """Who is at work on a GPU: ``(pid, bytes)`` each, and whether some of them share it by MPS."""

    processes: tuple[tuple[int, int], ...] = ()
    mps: bool = False


def processes(asking: Asking, handle: Any) -> Use:
    """Return the processes that hold memory of a GPU or of a slice."""
    listed = asking.newest(
        "list of processes",
        ("nvmlDeviceGetComputeRunningProcesses_v3", handle),
        ("nvmlDeviceGetComputeRunningProcesses_v2", handle),
    )
    # Older drivers have no such list; there the MPS server's pid file tells that it runs.
    through_mps = asking.newest(
        "list of processes under MPS", ("nvmlDeviceGetMPSComputeRunningProcesses_v3", handle), None
    )
    found: dict[int, int] = {}
    for part in (listed or (), through_mps or ()):
        own: dict[int, int] = {}
        for process in part:
            if process.usedGpuMemory is None:
                asking.problems.append(f"The memory of process {process.pid} is not reported.")
            own[process.pid] = own.get(process.pid, 0) + (process.usedGpuMemory or 0)
        # One that stands in both lists holds its memory once.
        found |= {pid: max(size, found.get(pid, 0)) for pid, size in own.items()}
    return Use(tuple(sorted(found.items())), bool(through_mps))


def _health(asking: Asking, gpu: KnownGpu, temperature: int | None) -> GpuHealth:
    nvml, handle = asking.nvml, gpu.handle
    corrected, uncorrected = (
        asking.ask(
            f"count of {name} ECC errors",
            "nvmlDeviceGetTotalEccErrors",
            handle,
            kind,
            nvml.NVML_VOLATILE_ECC,
        )
        for name, kind in (
            ("corrected", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        )
    )
    remapped = asking.ask("state of remapped rows", "nvmlDeviceGetRemappedRows", handle)
    rows, remap_pending, remap_failed = None, None, None
    if remapped is not None:
        rows = remapped[0] + remapped[1]
        remap_pending, remap_failed = bool(remapped[2]), bool(remapped[3])
    pages = [
        asking.ask("list of retired pages", "nvmlDeviceGetRetiredPages_v2", handle, cause)
        for cause in (
            nvml.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
            nvml.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,
        )
    ]
    retired = (
        sum(len(p) for p in pages if p is not None) if any(p is not None for p in pages) else None
    )
    pages_pending = asking.ask(
        "state of page retirement", "nvmlDeviceGetRetiredPagesPendingStatus", handle
    )
    if pages_pending is not None:
        # A GPU either remaps rows or, before Ampere, retires pages: both wait for a reset alike.
        remap_pending = bool(remap_pending) or bool(pages_pending)
    reasons = asking.newest(
        "reasons for lower clocks",
        ("nvmlDeviceGetCurrentClocksEventReasons", handle),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", handle),
    )
    hot = nvml.nvmlClocksThrottleReasonHwThermalSlowdown
    hot |= nvml.nvmlClocksThrottleReasonSwThermalSlowdown
    brake = nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
    return GpuHealth(
        ecc_corrected=corrected,
        ecc_uncorrected=uncorrected,
        # NVML has no such counter; the driver tells each of them as an XID.
        ecc_uncontained=gpu.uncontained if gpu.events is not None else None,
        remapped_rows=rows,
        remap_pending=remap_pending,
        remap_failed=remap_failed,
        retired_pages=retired,
        xids=gpu.xids,
        recovery_action=_recovery_action(asking, handle),
        thermal_slowdown=None if reasons is None else bool(reasons & hot),
        power_brake=None if reasons is None else bool(reasons & brake),
        temperature_c=None if temperature is None else float(temperature),
        temperature_limit_c=_temperature_limit(asking, handle, temperature),
        pcie_replays=asking.ask("PCIe replays", "nvmlDeviceGetPcieReplayCounter", handle),
    )


def _temperature_limit(asking: Asking, handle: Any, temperature: int | None) -> float | None:
    limit = asking.ask(
        "temperature limit",
        "nvmlDeviceGetTemperatureThreshold",
        handle,
        asking.nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
    )
    if limit is not None:
        return float(limit)
    if temperature is None:
        return None
    # Newer GPUs tell the distance to the limit only.
    margin = asking.ask("temperature margin", "nvmlDeviceGetMarginTemperature", handle)
    return None if margin is None else float(temperature + margin)


def _recovery_action(asking: Asking, handle: Any) -> str | None:
    values = asking.ask(
        "recovery action", "nvmlDeviceGetFieldValues", handle, [FIELD_RECOVERY_ACTION]
    )
    if values is None or values[0].nvmlReturn != asking.nvml.NVML_SUCCESS:
        return None
    number = int(values[0].value.uiVal)
    names = tuple(RECOVERY_ACTIONS)
    return names[number] if number < len(names) else f"action {number}"


def _drain_events(asking: Asking, gpu: KnownGpu, clock: Callable[[], float]) -> None:
    nvml = asking.nvml
    if not gpu.watched:
        gpu.watched = _watch(asking, gpu)
    if gpu.events is None:
        return
    for _ in range(_MAX_EVENTS):
        try:
            event = asking.call("nvmlEventSetWait_v2", gpu.events, 0)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_TIMEOUT:
                asking.problems.append(asking.sentence("XID events", "nvmlEventSetWait_v2", error))
            return
        if event.eventType & nvml.nvmlEventTypeXidCriticalError:
            code = int(event.eventData)
            gpu.xids = (*gpu.xids, XidEvent(code, clock()))[-_MAX_XIDS:]
            gpu.uncontained += code == _UNCONTAINED_XID


def _watch(asking: Asking, gpu: KnownGpu) -> bool:
    """Have the driver keep this GPU's XID events for us; return whether that is settled.

    A GPU that has no such events is settled, a failure is tried and named again at the next
    reading. Its other events (ECC, recovery action) tell what the counters and fields tell as well.
    """
    nvml = asking.nvml
    faults = len(asking.problems)
    supported = asking.ask("kinds of events", "nvmlDeviceGetSupportedEventTypes", gpu.handle)
    if not (supported or 0) & nvml.nvmlEventTypeXidCriticalError:
        return len(asking.problems) == faults
    events = asking.ask("XID events", "nvmlEventSetCreate")
    if events is None:
        return False
    try:
        asking.call(
            "nvmlDeviceRegisterEvents", gpu.handle, nvml.nvmlEventTypeXidCriticalError, events
        )
    except nvml.NVMLError as error:
        asking.problems.append(asking.sentence("XID events", "nvmlDeviceRegisterEvents", error))
        asking.ask("set of XID events", "nvmlEventSetFree", events)
        return False
    gpu.events = events
    return True
