"""A machine's emulated devices: what a test sets up, and what everybody may ask about them."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_HEADER = struct.Struct("<QQ48x")
_STATES = ("running", "locked", "checkpointed")
_RECORD = struct.Struct("<8Q")
VARIABLES = "EMULATED_ACCELERATOR_"


@dataclass(frozen=True)
class Settings:
    """What one process sees of the devices."""

    ledger: str | None
    ledger_devices: tuple[int, ...]
    capacities: tuple[int, ...]
    context_bytes: int = 0
    poison: bool = False


@dataclass(frozen=True)
class Devices:
    """Devices that all processes with this ledger share.

    Parameters
    ----------
    ledger
        File in which the processes keep account.
    capacities
        Bytes of each device.
    context_bytes
        What a process takes of a device before its first tensor, as a CUDA context does.
    poison
        Overwrite freed blocks, so that a read of freed memory shows.
    """

    ledger: Path
    capacities: tuple[int, ...]
    context_bytes: int = 0
    poison: bool = False

    @property
    def uuids(self) -> tuple[str, ...]:
        """UUID of each device, as the stub NVML library gives them."""
        return tuple(map(uuid_of, range(len(self.capacities))))

    def environ(
        self, base: Mapping[str, str] | None = None, visible: Sequence[int | str] | None = None
    ) -> dict[str, str]:
        """Environment for a process in which ``import torch`` finds these devices.

        `visible` becomes ``CUDA_VISIBLE_DEVICES``: numbers or UUIDs of what the process sees.
        """
        environ = dict(os.environ if base is None else base)
        paths = [str(HERE / "site"), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(paths).rstrip(os.pathsep)
        environ[VARIABLES + "LEDGER"] = str(self.ledger)
        environ[VARIABLES + "BYTES"] = ",".join(map(str, self.capacities))
        environ[VARIABLES + "CONTEXT_BYTES"] = str(self.context_bytes)
        environ[VARIABLES + "POISON"] = str(int(self.poison))
        environ.pop("CUDA_VISIBLE_DEVICES", None)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, visible))
        return environ

    def holders(self, device: int) -> dict[int, int]:
        """Bytes of `device` that each living process holds, by pid."""
        return {
            pid: held
            for pid, index, held, state, _ in self._records()
            if index == device and _STATES[state] != "checkpointed"
        }

    def state(self, pid: int) -> str | None:
        """What the driver does with a process: ``"running"``, ``"locked"``, ``"checkpointed"``.

        ``None`` if it has not used a device.
        """
        return next((_STATES[state] for p, _, _, state, _ in self._records() if p == pid), None)

    def saved(self, pid: int) -> int:
        """Bytes that the driver took off the devices and keeps for a process."""
        return sum(saved for p, _, _, _, saved in self._records() if p == pid)

    def _records(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield pid, device, bytes, state and saved bytes of what living processes hold."""
        data = b""
        if self.ledger.exists():
            with self.ledger.open("rb") as file:
                # Two records that were not true at the same time would make a wrong sum.
                fcntl.flock(file, fcntl.LOCK_SH)
                data = file.read()
        for pid, started, _, device, held, state, saved, _ in _RECORD.iter_unpack(
            data[_HEADER.size :]
        ):
            if pid and _started(pid) == started:
                yield pid, device, held, state, saved

    def used(self, device: int) -> int:
        """Bytes of `device` that all living processes hold."""
        return sum(self.holders(device).values())

    def set_lost(self, device: int, lost: bool = True) -> None:
        """Let `device` fall off the bus for every process, or bring it back."""
        with self.ledger.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            magic, mask = _HEADER.unpack(file.read(_HEADER.size))
            mask = mask | 1 << device if lost else mask & ~(1 << device)
            file.seek(0)
            file.write(struct.pack("<QQ", magic, mask))

    def nvml_values(self, healthy: Mapping[str, Any]) -> dict[str, Any]:
        """Values for the stub NVML's state file, so that it reads memory from the ledger."""
        values: dict[str, Any] = {"count": len(self.capacities), "accelerator": self.ledger}
        for i, capacity in enumerate(self.capacities):
            own = {"uuid": self.uuids[i], "total": capacity, "used": 0, "processes": ""}
            values |= {
                f"gpu.{i}.{name}": value
                for name, value in {**healthy, **own, "reserved": 0}.items()
            }
        return values


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return what the environment says; two devices of 1 GiB, of this process alone, if nothing."""
    capacities = [
        int(n) for n in environ.get(VARIABLES + "BYTES", f"{1 << 30},{1 << 30}").split(",")
    ]
    visible = list(range(len(capacities)))
    wanted = environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None:
        visible = []
        for entry in filter(None, map(str.strip, wanted.split(","))):
            numbers = [i for i in range(len(capacities)) if _names(entry, i)]
            # CUDA takes no notice of what follows an entry it does not know.
            if len(numbers) != 1:
                break
            visible += numbers
    return Settings(
        ledger=environ.get(VARIABLES + "LEDGER"),
        ledger_devices=tuple(visible),
        capacities=tuple(capacities[i] for i in visible),
        context_bytes=int(environ.get(VARIABLES + "CONTEXT_BYTES", "0")),
        poison=environ.get(VARIABLES + "POISON", "0") == "1",
    )


def uuid_of(device: int) -> str:
    """Return the UUID of a device, in the form that a driver gives."""
    return f"GPU-e{device:07x}-0000-4000-8000-{device:012x}"


def _names(entry: str, device: int) -> bool:
    # A UUID may be cut short as long as it fits one device only.
    if entry.startswith("GPU-"):
        return uuid_of(device).startswith(entry)
    return entry == str(device)


def _started(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
