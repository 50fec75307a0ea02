"""What a machine's driver was seen to do with whole processes; `jupyter gpu doctor --prove` looks.

A driver that has the calls may still not bring every byte back, or not a cell in its middle, so
nothing is suspended by it before that was tried with a process that has nothing to lose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "driver-checkpoint.json"
"""Name of the proof in the data folder."""

_VERSION = 2
AGAIN = "prove it with `jupyter gpu doctor --prove`"


@dataclass(frozen=True, slots=True)
class Proof:
    """What worked under one driver.

    Attributes
    ----------
    way
        By which bindings the driver was called.
    gpus
        Names of the kinds of GPU that it was tried on.
    between_cells, mid_cell
        Whether an idle process, and one with work under way, came back with every byte right.
    move
        Names of the kinds, of which there was more than one, where one came back on another GPU.
    out_s_per_gib, back_s_per_gib
        Time in the driver, in seconds per GiB.
    made_s
        When, in seconds since the Unix epoch.
    """

    driver_version: str
    way: str
    gpus: tuple[str, ...]
    between_cells: bool
    mid_cell: bool
    move: tuple[str, ...]
    out_s_per_gib: float
    back_s_per_gib: float
    made_s: float

    def why_not(self, driver_version: str, gpu_name: str, *, mid_cell: bool = False) -> str | None:
        """Return why a kernel on a GPU called `gpu_name` is not to be suspended by the driver."""
        if driver_version != self.driver_version:
            now = driver_version or "no driver that answers"
            return f"proven under driver {self.driver_version}, not under {now}; {AGAIN}"
        if gpu_name not in self.gpus:
            return f"not proven on {gpu_name}; {AGAIN}"
        if not self.between_cells:
            return f"driver {driver_version} did not bring a process back rightly"
        if mid_cell and not self.mid_cell:
            return f"driver {driver_version} did not bring a process back in the middle of its work"
        return None

    def why_not_move(self, driver_version: str, gpu_name: str) -> str | None:
        """Return why a kernel is not to be brought back on another GPU of its kind."""
        why = self.why_not(driver_version, gpu_name)
        if why is None and gpu_name not in self.move:
            return f"coming back on another {gpu_name} is not proven on this machine"
        return why

    def to_json(self) -> dict[str, Any]:
        """Return the proof as plain data."""
        return {"version": _VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Proof:
        """Return the proof that `to_json` made.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is none.
        """
        if data["version"] != _VERSION:
            raise ValueError(f"version {data['version']}")
        return cls(
            driver_version=str(data["driver_version"]),
            way=str(data["way"]),
            gpus=_names(data["gpus"]),
            # Not `bool(...)`: the text "false" must not pass.
            between_cells=data["between_cells"] is True,
            mid_cell=data["mid_cell"] is True,
            move=_names(data["move"]),
            out_s_per_gib=float(data["out_s_per_gib"]),
            back_s_per_gib=float(data["back_s_per_gib"]),
            made_s=float(data["made_s"]),
        )


class ProofFile:
    """The proof on disk; read again when it has changed.

    It is believed on the machine on which it was made: a home may be shared by several.

    Parameters
    ----------
    path
        Where it is, or will be.
    machine
        What tells this machine from others.
    """

    def __init__(self, path: Path, machine: str | None = None) -> None:
        self.path = path
        self._machine = this_machine() if machine is None else machine
        self._seen: tuple[int, int] | None = None
        self._proof: Proof | None = None
        self._fault = ""

    def read(self) -> tuple[Proof | None, str]:
        """Return the proof, or ``None`` and why there is none."""
        try:
            info = self.path.stat()
        except OSError:
            self._seen = None
            return None, f"not proven on this machine; {AGAIN}"
        if (seen := (info.st_mtime_ns, info.st_size)) != self._seen:
            self._seen = seen
            self._proof, self._fault = self._load(info)
        return self._proof, self._fault

    def _load(self, info: os.stat_result) -> tuple[Proof | None, str]:
        if info.st_uid not in (0, os.geteuid()) or stat.S_IMODE(info.st_mode) & 0o022:
            return None, f"{self.path} may be written by others; {AGAIN} again"
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            proof, machine = Proof.from_json(data), data["machine"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return None, f"{self.path} cannot be read ({error!r}); {AGAIN} again"
        if machine != self._machine:
            return None, f"proven on another machine than this; {AGAIN}"
        return proof, ""

    def write(self, proof: Proof) -> None:
        """Keep a proof, for this user only; a crash leaves the former one whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, part = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                json.dump({**proof.to_json(), "machine": self._machine}, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise


def this_machine() -> str:
    """Return what tells this machine from others: a digest, so that it gives no name away.

    It is systemd's machine id (machine-id(5)), or the host's name where there is none.
    """
    own = ""
    with contextlib.suppress(OSError):
        own = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    return hashlib.sha256((own or platform.node()).encode()).hexdigest()[:32]


def _names(value: Any) -> tuple[str, ...]:
    # Not `tuple(...)`: a text has letters, and `true` is no list.
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return tuple(str(name) for name in value)
