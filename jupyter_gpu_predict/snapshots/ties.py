"""What ties a session to its process and cannot be carried to another one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .buffers import loaded
from .quiet import busy_reasons, is_own, origin_module

_SIGNALS = ("INT", "TERM", "HUP", "QUIT", "ALRM", "VTALRM", "PROF", "USR1", "USR2", "CHLD", "PIPE")
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_HELPERS = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "loky.backend.resource_tracker",
    "loky.backend.popen_loky_posix",
    "torch._inductor.compile_worker",
    "debugpy/adapter",
    "debugpy\\adapter",
)
"""Child processes that libraries keep for themselves and start again when they need them."""

OWN_CHILDREN: set[int] = set()
"""Pids of processes that write a snapshot for this one; they end by themselves."""

_CALLBACK_LISTS = ("ast_transformers", "input_transformers_cleanup", "input_transformers_post")


def ties(shell: Any) -> list[str]:
    """Return a sentence for each thing that would be lost if the session went to a new process.

    asyncio tasks are those of the event loop that runs in the calling thread.
    """
    return [*_comms(), *_children(), *_signals(), *_hooks(shell), *busy_reasons()]


def _comms() -> Iterator[str]:
    library = loaded("comm")
    if library is None:
        return
    targets = [str(c.target_name) for c in library.get_comm_manager().comms.values()]
    if targets:
        kinds = ", ".join(sorted(set(targets)))
        yield f"{len(targets)} open comms ({kinds}), such as widgets; close them first"


def _children() -> Iterator[str]:
    own = os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            command = (
                (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue  # it has ended in the meantime
        state, parent = status[0], int(status[1])
        if parent != own or state == "Z" or int(folder.name) in OWN_CHILDREN:
            continue
        if not any(helper in command for helper in _HELPERS):
            label = command.strip()[:80] or "no command line"
            yield f"child process {folder.name} ({label}) is running"


def _signals() -> Iterator[str]:
    for name in _SIGNALS:
        handler = signal.getsignal(getattr(signal, f"SIG{name}"))
        if callable(handler) and not isinstance(handler, signal.Handlers):
            module = origin_module(handler)
            if module not in ("_signal", "signal", "asyncio.unix_events") and not is_own(module):
                label = getattr(handler, "__qualname__", repr(handler))
                yield f"a handler for SIG{name} is set ({module}.{label})"
    if any(signal.getitimer(timer)[0] > 0 for timer in _TIMERS):
        yield "a timer is running that will send a signal"


def _hooks(shell: Any) -> Iterator[str]:
    extensions = tuple(getattr(getattr(shell, "extension_manager", None), "loaded", ()))
    callbacks = getattr(getattr(shell, "events", None), "callbacks", {})
    places = [(f"event {name}", list(functions)) for name, functions in callbacks.items()]
    places += [(name, list(getattr(shell, name, ()))) for name in _CALLBACK_LISTS]
    for place, functions in places:
        for function in functions:
            module = origin_module(function)
            if not is_own(module) and not any(
                module.partition(".")[0] == extension.partition(".")[0] for extension in extensions
            ):
                label = getattr(function, "__qualname__", type(function).__qualname__)
                yield f"{module}.{label} is registered with IPython ({place})"
    if getattr(shell, "custom_exceptions", ()):
        yield "a handler for exceptions is set with set_custom_exc"
