"""Simulated GPUs: their memory is what kernels report, their health is scripted."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.model import MIB, GpuHealth, GpuStatus
from ..core.sizes import MAX_BYTES, format_bytes
from ..errors import BadInputError, DeviceError, NotFoundError
from .health_changes import ScriptedHealth, changed

MAX_COUNT = 256

_SOUND = ScriptedHealth(
    GpuHealth(
        ecc_corrected=0,
        ecc_uncorrected=0,
        ecc_uncontained=0,
        remapped_rows=0,
        remap_pending=False,
        remap_failed=False,
        retired_pages=0,
        recovery_action="none",
        thermal_slowdown=False,
        power_brake=False,
        pcie_replays=0,
    )
)


class SimulatedGpus:
    """GPUs whose memory is the kernels' host memory and whose health is scripted.

    Parameters
    ----------
    count
        Number of GPUs; their uuids are ``SIM-GPU-0``, ``SIM-GPU-1``…
    memory_bytes
        Memory of each.
    persist
        File that keeps the scripted health over a restart of the server; ``None`` keeps none.
    clock
        Gives the present time in seconds since the epoch.

    Raises
    ------
    BadInputError
        If `count` or `memory_bytes` is not a positive whole number.
    DeviceError
        If `persist` exists and cannot be read.

    Notes
    -----
    Every method may be called from any thread.
    """

    name = "simulated"
    simulated = True
    torch_device = "simulated"

    def __init__(
        self,
        count: int = 2,
        memory_bytes: int = 512 * MIB,
        persist: str | os.PathLike[str] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check("number of simulated GPUs", count, MAX_COUNT)
        _check("memory of a simulated GPU in bytes", memory_bytes, MAX_BYTES)
        self._memory_bytes = memory_bytes
        self._clock = clock
        self._persist = None if persist is None else Path(persist)
        self._lock = threading.Lock()
        self._health = {f"SIM-GPU-{i}": _SOUND for i in range(count)}
        self._used: dict[str, tuple[tuple[int, int], ...]] = {}
        self._unknown: tuple[str, ...] = ()
        if self._persist is not None:
            self._health.update(self._load(self._persist))

    def read(self) -> tuple[GpuStatus, ...]:
        """Return the present state of every GPU, a lost one included; never raises."""
        with self._lock:
            return tuple(
                self._status(index, uuid, state)
                for index, (uuid, state) in enumerate(self._health.items())
            )

    def account(self, memory: Mapping[str, Mapping[int, int]]) -> None:
        """Replace what is known of memory in use by ``{gpu uuid: {pid: bytes}}``.

        A GPU that is not named holds nothing. Memory on a uuid that is none of these GPUs (a lease
        that is older than a change of their number) is named in the first GPU's problems.

        Raises
        ------
        BadInputError
            If a pid or a size is not a whole number of at least 0; nothing is changed then.
        """
        used: dict[str, tuple[tuple[int, int], ...]] = {}
        unknown: list[str] = []
        for uuid, processes in memory.items():
            for pid, size in processes.items():
                if not (_whole(pid) and _whole(size)):
                    raise BadInputError(
                        f"Process {pid!r} on GPU {uuid!r} cannot hold {size!r} bytes: use whole "
                        "numbers that are not negative."
                    )
            if uuid in self._health:
                used[uuid] = tuple(sorted(processes.items()))
            elif processes:
                unknown.append(
                    f"Kernels report {format_bytes(sum(processes.values()))} on GPU {uuid!r}, "
                    "which is none of the simulated GPUs."
                )
        with self._lock:
            self._used, self._unknown = used, tuple(unknown)

    def script_health(self, uuid: str, **changes: Any) -> GpuHealth:
        """Change a GPU's health and return it.

        Parameters
        ----------
        uuid
            The GPU.
        **changes
            Fields of `GpuHealth`, ``lost`` (bool), or ``xid`` (int), an XID that occurs now.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        BadInputError
            If a change is malformed; nothing is changed then.
        DeviceError
            If the health cannot be kept in its file; nothing is changed then.
        """
        self._known(uuid)
        with self._lock:
            state = changed(self._health[uuid], changes, self._clock)
            if self._persist is not None:
                self._save(self._persist, self._health | {uuid: state})
            self._health[uuid] = state
            return state.health

    def environment(self, uuid: str, lease_bytes: int = 0) -> dict[str, str]:
        """Return the variable that tells a kernel's agent which simulated GPU is its own.

        Raises
        ------
        NotFoundError
            If there is no such GPU.
        """
        self._known(uuid)
        return {"JUPYTER_GPU_PREDICT_GPU": uuid}

    def close(self) -> None:
        """Forget what kernels reported."""
        with self._lock:
            self._used, self._unknown = {}, ()

    def _known(self, uuid: str) -> None:
        if uuid not in self._health:
            raise NotFoundError(
                f"There is no GPU {uuid!r}: the simulated GPUs are {', '.join(self._health)}."
            )

    def _status(self, index: int, uuid: str, state: ScriptedHealth) -> GpuStatus:
        processes = self._used.get(uuid, ())
        problems = list(self._unknown) if index == 0 else []
        if state.lost:
            problems.append("The GPU is scripted as lost.")
        return GpuStatus(
            uuid=uuid,
            index=index,
            name="Simulated GPU",
            total_bytes=self._memory_bytes,
            simulated=True,
            used_bytes=None if state.lost else sum(size for _, size in processes),
            temperature_c=None if state.lost else state.health.temperature_c,
            processes=() if state.lost else processes,
            health=state.health,
            lost=state.lost,
            problems=tuple(problems),
        )

    def _load(self, path: Path) -> dict[str, ScriptedHealth]:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, error) from error
        try:
            entries = json.loads(text)
            if not isinstance(entries, dict):
                raise TypeError("it is not a JSON object")
            return {
                uuid: changed(_SOUND, entries[uuid], self._clock)
                for uuid in self._health
                if uuid in entries
            }
        except (ValueError, TypeError, AttributeError, BadInputError) as error:
            raise _unreadable(path, error) from error

    @staticmethod
    def _save(path: Path, health: Mapping[str, ScriptedHealth]) -> None:
        entries = {uuid: asdict(s.health) | {"lost": s.lost} for uuid, s in health.items()}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(entries, indent=1), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise DeviceError(
                f"The scripted health of the simulated GPUs could not be kept in {path}: {error}. "
                "Free space or choose another file."
            ) from error


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check(what: str, value: Any, most: int) -> None:
    if not _whole(value) or not 0 < value <= most:
        raise BadInputError(f"The {what} cannot be {value!r}: use a whole number from 1 to {most}.")


def _unreadable(path: Path, error: Exception) -> DeviceError:
    return DeviceError(
        f"The scripted health of the simulated GPUs in {path} cannot be read: {error}. "
        "Delete the file to start with sound GPUs."
    )
