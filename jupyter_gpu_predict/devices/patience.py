"""Calls into a library that may never return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long NVML is waited for, in seconds.

    Attributes
    ----------
    start_s
        For the driver to load and list its GPUs; without persistence mode that takes seconds.
    answer_s
        For all GPUs to answer one reading, before their last values are shown instead.
    lost_s
        Until a GPU that does not answer at all is taken for lost.
    retry_s
        Between attempts to find the driver or a lost GPU again.
    """

    start_s: float = 30.0
    answer_s: float = 2.0
    lost_s: float = 30.0
    retry_s: float = 10.0


class NoAnswerYetError(Exception):
    """The call goes on; `waited_s` is for how long already."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(f"no answer for {waited_s:.1f} s")
        self.waited_s = waited_s


class PatientCall(Generic[T]):
    """Runs one call at a time in a thread of its own, so that nobody has to wait for its end.

    The threads are daemons: a call that hangs for ever does not keep the process alive, as one in
    an executor would.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._done = threading.Event()
        self._started_s: float | None = None
        self._answer: Callable[[], T] | None = None

    @property
    def hangs(self) -> bool:
        """Whether a call was started that has not returned yet."""
        return self._started_s is not None and not self._done.is_set()

    @property
    def asked(self) -> bool:
        """Whether a call was started whose answer has not been collected."""
        return self._started_s is not None

    def start(self, call: Callable[[], T]) -> None:
        """Start `call`, unless an earlier one has not been collected by `wait`."""
        if self._started_s is not None:
            return
        self._done.clear()
        self._started_s = time.monotonic()
        threading.Thread(target=self._run, args=(call,), name=self._name, daemon=True).start()

    def wait(self, timeout_s: float) -> T:
        """Return the call's result, or raise what it raised.

        Raises
        ------
        NoAnswerYetError
            If it has not returned within `timeout_s` from now.
        """
        if self._started_s is None:
            raise RuntimeError(f"{self._name}: wait() without start().")
        if not self._done.wait(max(0.0, timeout_s)):
            raise NoAnswerYetError(time.monotonic() - self._started_s)
        answer, self._answer, self._started_s = self._answer, None, None
        if answer is None:
            raise RuntimeError(f"{self._name}: the call left no answer.")
        return answer()

    def _run(self, call: Callable[[], T]) -> None:
        try:
            result = call()
        except Exception as error:
            failure = error

            def failed() -> T:
                raise failure

            self._answer = failed
        else:
            self._answer = lambda: result
        finally:
            self._done.set()
