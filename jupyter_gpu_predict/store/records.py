"""What the store keeps besides the words of `core.model`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """What a new server needs to know to go on with a kernel whose server was killed.

    `pid_created_s` and `owner_created_s` are the start times of the processes, which tell them
    from later ones with the same pid. `owner_pid` is the server that manages the kernel. `ports`
    maps the names of a connection file (``"shell_port"`` ...) to port numbers; the key is not
    kept, it stays in `connection_file`. `provisioner_info` is what the kernel's provisioner says of
    itself and holds JSON values only.
    """

    kernel_id: str
    kernel_name: str
    pid: int
    pid_created_s: float
    pgid: int | None
    connection_file: str
    ports: Mapping[str, int]
    notebook: str | None
    session_id: str | None
    session_name: str | None
    session_type: str | None
    root_dir: str
    owner_pid: int
    owner_created_s: float
    argv: tuple[str, ...]
    cwd: str | None
    provisioner_info: Mapping[str, Any] = field(default_factory=dict)
