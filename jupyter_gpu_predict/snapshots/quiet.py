"""Whether anything of the user's still runs beside the cells."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

OWN_PACKAGES = frozenset(
    {
        "IPython",
        "_pydevd_bundle",
        "comm",
        "debugpy",
        "ipykernel",
        "jupyter_client",
        "jupyter_gpu_predict",
        "matplotlib_inline",
        "nest_asyncio",
        "pydevd",
        "tornado",
        "traitlets",
        "zmq",
    }
)
"""Packages whose threads, tasks, callbacks and handlers every kernel has of itself."""

_PACKAGE = __name__.partition(".")[0]
_WAITING = frozenset({"get", "wait", "recv", "_recv", "recv_bytes", "poll", "select", "accept"})


def busy_reasons(loop: asyncio.AbstractEventLoop | None = None) -> list[str]:
    """Return a sentence for each thread and asyncio task of the user's that is at work.

    A kernel's own threads do not count, nor do progress bars' monitors and executors whose workers
    wait for work.

    Parameters
    ----------
    loop
        The kernel's event loop; without it the loop running in this thread, if there is one.
    """
    reasons = [
        f"thread {thread.name!r} ({_origin(thread)}) is at work"
        for thread in threading.enumerate()
        if not _harmless(thread)
    ]
    if loop is None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return reasons
    reasons += [f"asyncio task {name} is pending" for name in _user_tasks(loop)]
    return reasons


def is_own(module: object) -> bool:
    """Tell whether a module name belongs to the kernel's own machinery."""
    package = str(module or "").partition(".")[0]
    return package in OWN_PACKAGES or package == _PACKAGE


def origin_module(function: Any) -> str:
    """Return the module in which a callable was defined."""
    function = getattr(function, "func", function)  # functools.partial
    function = getattr(function, "__func__", function)
    module = getattr(function, "__module__", None)
    return str(module or type(function).__module__)


def _origin(thread: threading.Thread) -> str:
    kind = type(thread)
    if kind.__module__ != "threading":
        return f"{kind.__module__}.{kind.__qualname__}"
    target = getattr(thread, "_target", None)
    if target is None:
        return "no target"
    return f"{origin_module(target)}.{getattr(target, '__qualname__', type(target).__name__)}"


def _harmless(thread: threading.Thread) -> bool:
    if thread is threading.main_thread() or thread is threading.current_thread():
        return True
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return True  # a thread of C code that only once called Python
    origin = _origin(thread)
    if is_own(origin) or origin.startswith("tqdm._monitor."):
        return True
    waits = frame.f_code.co_name in _WAITING
    if origin == "concurrent.futures.thread._worker":
        return frame.f_code.co_name == "_worker"
    if origin.startswith(("multiprocessing.pool.", "multiprocessing.queues.")):
        return waits
    pending = getattr(thread, "pending_work_items", None)
    if origin.endswith("._ExecutorManagerThread") and pending is not None:
        return not pending
    return False


def _user_tasks(loop: asyncio.AbstractEventLoop) -> Iterator[str]:
    try:
        current = asyncio.current_task(loop)
    except RuntimeError:
        current = None
    for task in asyncio.all_tasks(loop):
        coroutine: Any = task.get_coro()
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        module = frame.f_globals.get("__name__") if frame is not None else None
        if task is current or task.done() or is_own(module):
            continue
        name = getattr(coroutine, "__qualname__", type(coroutine).__name__)
        yield f"{task.get_name()} ({module}.{name})"
