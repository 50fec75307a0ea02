"""How much memory this host, or the container this process runs in, can still give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LEAVE_SHARE = 0.1
"""This share of the host's memory is left to everybody else."""

_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" by a number near 2**63


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes of memory in all, and those that can be taken without pushing others out."""

    total_bytes: int
    available_bytes: int

    @property
    def room_bytes(self) -> int:
        """Bytes that device memory may take of it."""
        return max(0, self.available_bytes - int(LEAVE_SHARE * self.total_bytes))


def host_memory(root: str = "/") -> HostMemory:
    """Read the machine's memory and the limits of every control group this process is in.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` lie.
    """
    base = Path(root)
    fields = _fields(base / "proc" / "meminfo")
    # Where nothing can be read there is no limit that is known.
    total = fields.get("MemTotal:", _UNLIMITED >> 10) << 10
    available = fields.get("MemAvailable:", total >> 10) << 10
    for limit, used in _groups(base):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return HostMemory(total, available)


def _groups(base: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes that cannot be had back) of each limited group, innermost first."""
    try:
        lines = (base / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    top = base / "sys" / "fs" / "cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            yield from _up(top, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _up(top / "memory", path, names)


def _up(top: Path, path: str, names: tuple[str, str, str]) -> Iterator[tuple[int, int]]:
    # Inside a container the path may be the host's, and its own group is then the top itself.
    parts = [p for p in path.split("/") if p not in {"", ".", ".."}]
    for depth in range(len(parts), -1, -1):
        group = top.joinpath(*parts[:depth])
        try:
            limit = int((group / names[0]).read_text())
            used = int((group / names[1]).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if limit < _UNLIMITED:
            cache = _fields(group / "memory.stat").get(names[2], 0)
            yield limit, used - cache


def _fields(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {p[0]: int(p[1]) for p in pairs if len(p) >= 2 and p[1].isdigit()}
