"""What a checkpoint's gate has to know, read from NVML and ``/proc`` by the helper process."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cuda_checkpoint_driver import Driver, DriverError
from .cuda_checkpoint_steps import ProcessState

PROC = Path("/proc")
_CAP_SYS_PTRACE = 19
TRIES = 3
"""Calls that may answer "not supported" or "illegal state" before that is believed: drivers say
the one only sometimes, and another helper that still works on the process causes the other."""

PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as NVML shows it; ``None`` is "NVML does not say".

    `chip` is the same for GPUs of one kind. `processes` are pids with their bytes, `mps_pids` the
    pids that use it through the MPS server.
    """

    uuid: str
    chip: str
    free_bytes: int | None
    mig: bool | None
    processes: tuple[tuple[int, int | None], ...]
    mps_pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """One process of the kernel's tree.

    `started` is its start in clock ticks since boot: with it a pid that was given anew is told
    apart. `uid` is its effective user.
    """

    pid: int
    started: int
    uid: int
    state: ProcessState
    code: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """What the helper saw.

    `no_driver` is a reason and its sentence where the calls cannot be made at all. `processes` are
    those of the tree that use CUDA, parents first. `host_bytes` is what the host can still give
    to these processes, in bytes.
    """

    driver_version: str
    way: str
    way_version: str
    no_driver: tuple[str, str] | None
    gpus: tuple[GpuFacts, ...]
    processes: tuple[ProcessFacts, ...]
    host_bytes: int | None
    uid: int
    may_trace: bool

    def bytes_of(self, pid: int) -> int | None:
        """Return the device memory of a process; ``None`` where NVML does not tell it."""
        found = [used for gpu in self.gpus for p, used in gpu.processes if p == pid]
        return None if None in found else sum(used for used in found if used is not None)

    def gpus_of(self, pid: int) -> dict[str, int]:
        """Return the bytes that a process has on each GPU on which NVML lists it."""
        return {g.uuid: used or 0 for g in self.gpus for p, used in g.processes if p == pid}


def look_from_json(data: Mapping[str, Any]) -> Look:
    """Return a `Look` from what `dataclasses.asdict` and JSON made of it."""
    return Look(
        driver_version=data["driver_version"],
        way=data["way"],
        way_version=data["way_version"],
        no_driver=None if data["no_driver"] is None else tuple(data["no_driver"]),
        gpus=tuple(
            GpuFacts(
                **{
                    **gpu,
                    "processes": tuple((pid, used) for pid, used in gpu["processes"]),
                    "mps_pids": tuple(gpu["mps_pids"]),
                }
            )
            for gpu in data["gpus"]
        ),
        processes=tuple(
            ProcessFacts(**{**process, "state": ProcessState(process["state"])})
            for process in data["processes"]
        ),
        host_bytes=data["host_bytes"],
        uid=data["uid"],
        may_trace=data["may_trace"],
    )


def look_around(
    driver: Driver | None,
    no_driver: tuple[str, str] | None,
    root: int | None,
    known: Iterable[int],
) -> Look:
    """Read everything once.

    Parameters
    ----------
    root
        The kernel's process; it and its descendants are looked at.
    known
        Pids that are known to use CUDA: while checkpointed they have no open GPU and are listed
        nowhere.
    """
    version, gpus = read_nvml()
    known = tuple(known)
    listed = {pid for gpu in gpus for pid, _ in gpu.processes} | set(known)
    pids = dict.fromkeys([*(tree(root) if root is not None else ()), *known])
    processes = []
    for pid in pids:
        started = start_ticks(pid)
        if started is None or not (pid in listed or _has_gpu_open(pid)):
            continue
        state, code = (ProcessState.UNKNOWN, 0) if driver is None else read_state(driver, pid)
        processes.append(ProcessFacts(pid, started, _uid(pid), state, code))
    return Look(
        driver_version=version,
        way="" if driver is None else driver.way,
        way_version="" if driver is None else driver.version,
        no_driver=no_driver,
        gpus=gpus,
        processes=tuple(processes),
        host_bytes=host_bytes(root),
        uid=os.geteuid(),
        may_trace=os.geteuid() == 0 or _may_trace(),
    )


def read_state(driver: Driver, pid: int, *, pause_s: float = PAUSE_S) -> tuple[ProcessState, int]:
    """Return a process's state, or `UNKNOWN` and the driver's last answer to `TRIES` calls."""
    code = 0
    for attempt in range(1, TRIES + 1):
        try:
            return driver.state(pid), 0
        except DriverError as error:
            code = error.code
        if attempt < TRIES:
            time.sleep(pause_s * attempt)
    return ProcessState.UNKNOWN, code


# --------------------------------------------------------------------------- /proc


def start_ticks(pid: int) -> int | None:
    """Return when a process started; ``None`` if there is none, or only its remains."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold blanks and brackets itself.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def tree(root: int) -> list[int]:
    """Return `root` and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(sorted(children.get(pid, ())))
    return found


def host_bytes(pid: int | None) -> int | None:
    """Return the memory that the host, and the process's control group, can still give."""
    rooms = [_available(), None if pid is None else _cgroup_room(pid)]
    return min((room for room in rooms if room is not None), default=None)


def _available() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _cgroup_room(pid: int, mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return what is left below the tightest memory limit above a process (cgroup version 2)."""
    try:
        line = next(
            line
            for line in (PROC / str(pid) / "cgroup").read_text().splitlines()
            if line.startswith("0::")
        )
    except (OSError, StopIteration):
        return None
    folder, room = mount / line[3:].lstrip("/"), None
    while folder == mount or mount in folder.parents:
        with contextlib.suppress(OSError, ValueError):
            # "max" is no number: no limit.
            limit = int((folder / "memory.max").read_text())
            left = limit - int((folder / "memory.current").read_text())
            room = left if room is None else min(room, left)
        folder = folder.parent
    return None if room is None else max(0, room)


def _uid(pid: int) -> int:
    try:
        return (PROC / str(pid)).stat().st_uid
    except OSError:
        return -1


def _may_trace() -> bool:
    with contextlib.suppress(OSError, ValueError):
        for line in (PROC / "self" / "status").read_text().splitlines():
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)
    return False


def _has_gpu_open(pid: int) -> bool:
    with contextlib.suppress(OSError):
        for entry in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()).startswith("/dev/nvidia"):
                    return True
    return False


# --------------------------------------------------------------------------- NVML


def read_nvml() -> tuple[str, tuple[GpuFacts, ...]]:
    """Return the driver's version and the GPUs; nothing where NVML does not answer.

    Every GPU of the driver is listed, whatever ``CUDA_VISIBLE_DEVICES`` says: a map for a restore
    has to name them all.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        # What a missing or damaged library raises; the gate then says what cannot be known.
        return "", ()
    ask = _Ask(pynvml)
    version = ask("nvmlSystemGetDriverVersion") or ""
    gpus = []
    for index in range(ask("nvmlDeviceGetCount") or 0):
        handle = ask("nvmlDeviceGetHandleByIndex", index)
        uuid = None if handle is None else ask("nvmlDeviceGetUUID", handle)
        if uuid is not None:
            gpus.append(_read_gpu(ask, pynvml, handle, _text(uuid)))
    return _text(version), tuple(gpus)


class _Ask:
    """Asks NVML; what it does not answer is ``None``."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def __call__(self, function: str, *args: Any) -> Any:
        call = getattr(self._nvml, function, None)
        if call is None:
            return None
        try:
            return call(*args)
        except self._nvml.NVMLError:
            return None


def _read_gpu(ask: _Ask, nvml: Any, handle: Any, uuid: str) -> GpuFacts:
    name, pci = ask("nvmlDeviceGetName", handle), ask("nvmlDeviceGetPciInfo", handle)
    memory = ask("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2)
    memory = memory or ask("nvmlDeviceGetMemoryInfo", handle)
    mig = ask("nvmlDeviceGetMigMode", handle)
    listed = ask("nvmlDeviceGetComputeRunningProcesses", handle) or ()
    through_mps = ask("nvmlDeviceGetMPSComputeRunningProcesses", handle) or ()
    used: dict[int, int | None] = {}
    for process in (*listed, *through_mps):
        before, more = used.get(process.pid, 0), process.usedGpuMemory
        used[process.pid] = None if before is None or more is None else before + int(more)
    return GpuFacts(
        uuid=uuid,
        chip=f"{_text(name or '?')}/{pci.pciDeviceId:08x}" if pci else _text(name or "?"),
        free_bytes=None if memory is None else int(memory.free),
        mig=None if mig is None else mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
        processes=tuple(sorted(used.items())),
        mps_pids=tuple(sorted(process.pid for process in through_mps)),
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
