"""`%gpu` and `%%gpu`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..core.sizes import format_bytes
from ..errors import BadInputError, GpuPredictError
from .needs import parse_need
from .session_magics import SessionCommands
from .views import GpuResult, forecast_result

if TYPE_CHECKING:
    from .agent import Agent

HELP = """\
%gpu                       this kernel's lease and all GPUs
%gpu forecast              which cells are next and what this kernel will need, by which models
%gpu need 12GiB [--priority low|normal|high] [--prefer GPU] [--critical]
                           state what the next cells need; this cell waits for it
%gpu pin | unpin           never take this kernel's memory back | do so again
%gpu release               give this kernel's memory back after this cell; its state is kept
%gpu snapshot [NAME]       save this session
%gpu snapshots             list the saved sessions
%gpu restore NAME|last     bring a saved session back into this kernel; last: its latest one
             [--only a,b]  only these variables
             [--recompute] make what could not be saved again by running its cells
%gpu migrate [GPU]         move this kernel to another GPU after this cell
%gpu why                   what was decided about this kernel, and why
%gpu history               what happened to this kernel
%gpu help                  this page
%%gpu need 12GiB           state what this one cell needs"""


_TAKE_WORDS = frozenset({"need", "snapshot", "restore", "migrate"})
_CELL_NEED = re.compile(r"%%gpu[ \t]+need\b")


def register(shell: Any, agent: Agent | None) -> None:
    """Register the magics with `shell`; without an agent they show local GPUs only."""
    from IPython.core.error import UsageError

    def guarded(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except GpuPredictError as error:
            raise UsageError(str(error)) from None

    def gpu(line: str, cell: str | None = None) -> Any:
        """Show and steer this kernel's GPU; `%gpu help` lists what it can do."""
        if cell is None:
            return guarded(lambda: Commands(shell, agent).run(line))
        return guarded(lambda: Commands(shell, agent).run_cell(line, cell))

    shell.register_magic_function(gpu, magic_kind="line_cell", magic_name="gpu")
    if lay_bare not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(lay_bare)


def lay_bare(lines: list[str]) -> list[str]:
    """Turn ``%%gpu need …`` into a statement above the cell's own code.

    As part of a plain cell the code may use ``await``, and its errors are the cell's.
    """
    if not lines or not _CELL_NEED.match(lines[0]):
        return lines
    words = lines[0].strip().removeprefix("%%gpu").strip()
    return [f"get_ipython().run_cell_magic('gpu', {words!r}, ' ')\n", *lines[1:]]


class Commands(SessionCommands):
    """One method per command."""

    def __init__(self, shell: Any, agent: Agent | None) -> None:
        super().__init__(agent)
        self.shell = shell

    def run(self, line: str) -> GpuResult:
        """Run a line."""
        word, _, rest = line.strip().partition(" ")
        command = getattr(self, f"do_{word or 'status'}", None)
        if command is None:
            raise BadInputError(f"%gpu {word}: there is no such command; `%gpu help` lists them")
        if rest.strip() and word not in _TAKE_WORDS:
            raise BadInputError(f"%gpu {word} takes no further words, not {rest.strip()!r}")
        result: GpuResult = command(rest.strip())
        return result

    def run_cell(self, line: str, cell: str) -> None:
        """Run a cell whose need the gate has already claimed; `lay_bare` leaves it empty."""
        word, _, rest = line.strip().partition(" ")
        if word != "need":
            raise BadInputError(f"%%gpu {word}: only `%%gpu need SIZE` can stand above a cell")
        parse_need(rest)
        self._link()
        if cell.strip():
            self.shell.run_cell(cell, store_history=False).raise_error()

    # ------------------------------------------------------------------ looking

    def do_help(self, _: str) -> GpuResult:
        """List the commands."""
        return GpuResult(HELP)

    def do_status(self, _: str) -> GpuResult:
        """Show this kernel's lease and all GPUs."""
        if self.agent is None:
            return _local_gpus()
        data = self._ask("status")
        kernel, lease = data["kernel"], data["kernel"]["lease"]
        title = f"GPU: {kernel['state']}"
        if lease is not None:
            title += f" on {lease['gpu_uuid']}, {format_bytes(lease['bytes'])} set aside"
        title += f"; {format_bytes(kernel['used_bytes'])} in use"
        if kernel["suspended_bytes"]:
            title += f", {format_bytes(kernel['suspended_bytes'])} suspended"
        rows = [
            (
                g["uuid"],
                g["name"],
                f"{format_bytes(g['held_bytes'])} of {format_bytes(g['total_bytes'])}",
                "lost" if g["lost"] else "cordoned" if g["cordoned"] else "ready",
                g["risk"]["level"] if g["risk"] else "unknown",
                len(g["leases"]),
            )
            for g in data["gpus"]
        ]
        notes = [data["backend"]]
        if kernel["pinned"]:
            notes.append("Pinned: this kernel's memory is never taken back.")
        if kernel["last_decision"]:
            notes.append(f"Last decision: {kernel['last_decision']['reason']}")
        return GpuResult(
            title, ("GPU", "name", "held", "state", "risk", "leases"), rows, notes=notes, data=data
        )

    def do_forecast(self, _: str) -> GpuResult:
        """Show what this kernel will need."""
        data = self._ask("forecast")
        if data["model"] is None:
            return GpuResult("No forecast yet: it is made within seconds of a kernel's start.",
                             data=data)  # fmt: skip
        return forecast_result(data)

    def do_why(self, _: str) -> GpuResult:
        """Show the latest decisions about this kernel."""
        data = self._ask("why")
        rows = [(_clock(d["t_s"]), d["action"], d["reason"]) for d in data[-20:]]
        return GpuResult(
            "Decisions about this kernel" if rows else "Nothing was decided about this kernel yet.",
            ("when", "what", "why"),
            rows,
            data=data,
        )

    def do_history(self, _: str) -> GpuResult:
        """Show what happened to this kernel."""
        data = self._ask("history", limit=200)
        rows = [
            (
                _clock(e["t_s"]),
                e["kind"],
                format_bytes(e["bytes"]) if e.get("bytes") else "",
                e.get("reason") or "",
            )
            for e in data
            if e["kind"] not in {"cell_run", "forecast"}
        ]
        return GpuResult(
            "What happened to this kernel", ("when", "what", "size", "why"), rows, data=data
        )

    # ------------------------------------------------------------------ steering

    def do_need(self, words: str) -> GpuResult:
        """State what the next cells need; the gate has claimed it before this cell began."""
        need = parse_need(words)
        self._link().stated = need
        return GpuResult(f"The next cells claim {format_bytes(need.bytes)}.", data=need)

    def do_pin(self, _: str) -> GpuResult:
        """Never take this kernel's memory back."""
        return GpuResult("Pinned: this kernel's memory is not taken back.", data=self._ask("pin"))

    def do_unpin(self, _: str) -> GpuResult:
        """Let its memory be taken back again."""
        return GpuResult("Unpinned.", data=self._ask("unpin"))

    def do_release(self, _: str) -> GpuResult:
        """Give this kernel's memory back after this cell."""
        data = self._ask("release")
        return GpuResult(
            "Its memory is given back when this cell has ended; the next cell brings it back.",
            data=data,
        )

    def do_migrate(self, gpu: str) -> GpuResult:
        """Move this kernel after this cell."""
        data = self._ask("migrate", **({"gpu": gpu} if gpu else {}))
        return GpuResult(f"Operation {data['id']}: the move begins when this cell has ended.",
                         data=data)  # fmt: skip


def _local_gpus() -> GpuResult:
    from ..devices.nvml import NvmlGpus

    backend = NvmlGpus()
    try:
        gpus = backend.read()
    finally:
        backend.close()
    rows = [
        (g.uuid, g.name, f"{format_bytes(g.used_bytes or 0)} of {format_bytes(g.total_bytes)}")
        for g in gpus
    ]
    note = "No Jupyter server with jupyter_gpu_predict runs this kernel: nothing is managed here."
    title = "GPUs of this machine" if rows else "This machine has no NVIDIA GPU that answers."
    return GpuResult(title, ("GPU", "name", "used"), rows, notes=[note], data=gpus)


def _clock(t_s: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(t_s))
