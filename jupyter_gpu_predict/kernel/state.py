"""A kernel's state to and from a snapshot."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import RefusedError
from ..snapshots.capture import capture
from ..snapshots.folder import SnapshotFolder
from ..snapshots.outside import apply_outside, capture_outside
from ..snapshots.restore import restore
from ..snapshots.signing import load_or_create_key

if TYPE_CHECKING:
    from .agent import Agent
    from .messages import RestoreRequest, SnapshotRequest

_IPYTHON_NAMES = re.compile(r"_{1,3}|_i{1,3}|_\d+|_i\d+|_ih|_oh|_dh|In|Out")
_MISSING = object()


def user_names(shell: Any) -> list[str]:
    """Return the names of the user's own variables."""
    hidden = shell.user_ns_hidden
    return [
        name
        for name, value in shell.user_ns.items()
        # A user who binds a name of IPython's anew makes it their own.
        if hidden.get(name, _MISSING) is not value and not _IPYTHON_NAMES.fullmatch(name)
    ]


def save_state(agent: Agent, request: SnapshotRequest) -> dict[str, Any]:
    """Save the namespace, with `request.move` all that must go along to another process.

    Raises
    ------
    RefusedError
        If the state is to move and something of it cannot, by name.
    """
    shell = agent.shell
    outside: dict[str, Any] | None = None
    if request.move:
        outside, refusals = capture_outside(shell, agent.environ_at_start)
        if refusals:
            raise RefusedError(_cannot_move(agent, refusals))
    names = set(user_names(shell))
    with _borrowed_dill(agent.config.dill_dir):
        report = capture(
            shell.user_ns,
            SnapshotFolder(request.folder),
            load_or_create_key(request.key_path),
            name=request.name,
            now_s=time.time(),
            kernel_id=agent.config.kernel_id,
            notebook=request.notebook,
            hidden=[n for n in shell.user_ns if n not in names],
            extra=outside,
        )
    if request.move:
        lost = [f"{v.name} ({v.type_name}): {v.reason}" for v in report.variables
                if v.status != "saved"]  # fmt: skip
        lost += report.not_saved
        if lost:
            SnapshotFolder(request.folder).delete(report.snapshot_id)
            raise RefusedError(_cannot_move(agent, lost))
    return {
        "snapshot_id": report.snapshot_id,
        "name": report.name,
        "variables": [asdict(v) for v in report.variables],
        "notes": [f"{v.name}: {v.reason}" for v in report.variables if v.reason],
        "bytes_written": report.bytes_written,
        "seconds": report.seconds,
    }


def load_state(agent: Agent, request: RestoreRequest) -> dict[str, Any]:
    """Load a snapshot into the namespace; the signature is checked before anything is unpickled."""
    shell = agent.shell
    with _borrowed_dill(agent.config.dill_dir):
        report = restore(
            SnapshotFolder(request.folder),
            request.snapshot_id,
            load_or_create_key(request.key_path),
            shell.user_ns,
        )
    if request.move:
        faults = [*report.not_restored, *apply_outside(shell, report.extra)]
        if faults:
            raise RefusedError(_cannot_move(agent, faults))
    return {
        "snapshot_id": report.snapshot_id,
        "name": report.name,
        "variables": [asdict(v) for v in report.variables],
        "bytes_read": report.bytes_read,
        "seconds": report.seconds,
    }


def find_snapshot(agent: Agent, wanted: str) -> str:
    """Return the id of the snapshot of that name or id."""
    return SnapshotFolder(agent.config.snapshot_folder).find(wanted)


def _cannot_move(agent: Agent, what: Any) -> str:
    return (
        f"kernel {agent.config.kernel_id} cannot move to another process without losing "
        f"something, so it stays where it is: {'; '.join(what)}"
    )


@contextlib.contextmanager
def _borrowed_dill(folder: str) -> Iterator[None]:
    """Let a kernel without dill use the server's inside the block; nothing of it stays behind.

    dill imports itself by its own name, so it cannot live under another one.
    """
    if "dill" in sys.modules or not Path(folder, "dill").is_dir():
        yield
        return
    if not _lent and importlib.util.find_spec("dill") is not None:
        yield
        return
    try:
        if _lent:
            sys.modules.update(_lent)
        else:
            _load_dill(Path(folder, "dill"))
        yield
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] == "dill"]:
            _lent[name] = sys.modules.pop(name)


_lent: dict[str, ModuleType] = {}


def _load_dill(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "dill", str(folder / "__init__.py"), submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["dill"] = module
    spec.loader.exec_module(module)
    # On import dill changes the pickler of the whole process; the user did not ask for that.
    module.extend(False)
