"""Room for recursion: long chains of objects need more stack than a thread usually has."""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

STACK_BYTES = 512 << 20
"""Reserved, not used: the system gives pages of a thread's stack as they are touched."""

RECURSION_LIMIT = 250_000
"""About 2 kB of stack for each level, which C's pickler stays well under (measured: 0.5 kB)."""

_one_at_a_time = threading.Lock()


def call_deep(function: Callable[[], T]) -> T:
    """Call `function` in a thread with a large stack and return what it returns.

    Raises
    ------
    RecursionError
        If that was not enough either, or the system gave no such thread.
    """
    outcome: list[T] = []
    fault: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.append(context.run(function))
        except BaseException as error:
            fault.append(error)

    with _one_at_a_time:
        size, limit = threading.stack_size(), sys.getrecursionlimit()
        try:
            threading.stack_size(STACK_BYTES)
            thread = threading.Thread(target=run, name="jupyter-gpu-predict-deep")
            try:
                sys.setrecursionlimit(max(limit, RECURSION_LIMIT))
                thread.start()
            except RuntimeError as error:
                raise RecursionError(
                    f"no thread with a large stack could be had: {error}"
                ) from error
            thread.join()
        finally:
            threading.stack_size(size)
            sys.setrecursionlimit(limit)
    if fault:
        raise fault[0]
    return outcome[0]
