"""Who else is at work in this process: memory under their hands must not be moved."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

HARMLESS = frozenset(
    {
        "IPython",
        "_pydevd_bundle",
        "_pydevd_frame_eval",
        "anyio",
        "comm",
        "debugpy",
        "ipykernel",
        "ipykernel_launcher",
        "ipywidgets",
        "jupyter_client",
        "nest_asyncio",
        "pydevd",
        "tensorboard",
        "tornado",
        "tqdm",
        "traitlets",
        "wandb",
        "zmq",
        __name__.partition(".")[0],
    }
)
"""Packages whose threads and tasks never touch a tensor's memory."""

HARMLESS_MODULES = ("torch._inductor.compile_worker", "torch._inductor.async_compile")
"""Threads of torch itself that wait for compiler processes."""

_LAUNCHERS = ("ipykernel", "IPython")


def threads_at_work() -> tuple[str, ...]:
    """Return one sentence for each other thread that has user code on its stack.

    A thread that shows only the standard library and `HARMLESS` packages (an idle executor, a
    queue's feeder, tqdm's monitor, the kernel's own threads) does not count.
    """
    me = threading.get_ident()
    main = threading.main_thread().ident
    by_ident = {t.ident: t for t in threading.enumerate()}
    found = []
    frames = sys._current_frames()
    # A frame that refers to itself would keep every local of the calling stack alive.
    frames.pop(me, None)
    for ident, frame in frames.items():
        thread = by_ident.get(ident)
        where = _foreign(frame, is_main=ident == main) or _foreign_target(thread)
        if where:
            name = thread.name if thread is not None else f"thread {ident}"
            found.append(f"thread {name!r} is at work in {where}")
    return tuple(found)


def tasks_at_work(loop: asyncio.AbstractEventLoop) -> tuple[str, ...]:
    """Return one sentence for each unfinished asyncio task of `loop` that runs user code.

    Call it on the loop's own thread; the calling task does not count.
    """
    try:
        current = asyncio.current_task(loop)
    except RuntimeError:
        current = None
    found = []
    for task in asyncio.all_tasks(loop):
        if task is current or task.done():
            continue
        for frame, name in _awaited(task.get_coro()):
            if not _harmless(frame):
                found.append(f"asyncio task {task.get_name()!r} is at work in {name}")
                break
    return tuple(found)


def _awaited(coroutine: Any) -> Iterator[tuple[FrameType, str]]:
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        yield frame, getattr(coroutine, "__qualname__", "a coroutine")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _foreign(innermost: FrameType, *, is_main: bool) -> str | None:
    stack: list[FrameType] = []
    frame: FrameType | None = innermost
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    stack.reverse()
    if is_main:
        # Whatever script launched the kernel stays below the kernel's own frames for good.
        starts = [i for i, f in enumerate(stack) if _module(f).partition(".")[0] in _LAUNCHERS]
        stack = stack[starts[0] :] if starts else stack
    for f in stack:
        if not _harmless(f):
            return f"{f.f_code.co_name} ({_module(f)})"
    if innermost.f_code.co_name == "run" and _module(innermost) == "concurrent.futures.thread":
        return "a function without Python frames, run by an executor"
    return None


def _foreign_target(thread: threading.Thread | None) -> str | None:
    target = getattr(thread, "_target", None)
    if target is None or hasattr(target, "__code__") or hasattr(target, "__func__"):
        return None
    module = str(getattr(target, "__module__", None) or "")
    if module.partition(".")[0] in HARMLESS | sys.stdlib_module_names | {"builtins"}:
        return None
    return f"{getattr(target, '__name__', type(target).__name__)} ({module or 'unknown module'})"


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__") or "")


def _harmless(frame: FrameType) -> bool:
    module = _module(frame)
    root = module.partition(".")[0]
    if root == "__main__":
        return False
    return (
        root in HARMLESS or root in sys.stdlib_module_names or module.startswith(HARMLESS_MODULES)
    )
