"""A process of its own that uses the accelerator and runs a test's functions.

Registering the device cannot be undone, and other tests of the same process would see it.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .devices import Devices


class FailedInWorkerError(AssertionError):
    """A function raised in the worker; `kind` is the class it raised."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Worker:
    """A process that sees `devices`.

    Parameters
    ----------
    devices
        The devices.
    visible
        Numbers or UUIDs of those that it sees; all if ``None``.
    environ
        Environment to start from instead of this process's own.
    """

    def __init__(
        self,
        devices: Devices,
        visible: Sequence[int | str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=devices.environ(environ, visible),
                pass_fds=[theirs.fileno()],
            )
        self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        """Start a module's top-level function there."""
        code = function.__code__
        self._connection.send((code.co_filename, function.__name__, args))

    def end(self) -> Any:
        """Return what the function that was started returned."""
        try:
            good, *answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise FailedInWorkerError("exit", f"the worker ended{self._how()}") from None
        if not good:
            raise FailedInWorkerError(*answer)
        return answer[0]

    def _how(self) -> str:
        return f" with {self.process.wait(10)}"

    def running(self) -> bool:
        """Whether the function that was started still runs."""
        return not self._connection.poll(0.001)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a module's top-level function there and return its result."""
        self.begin(function, *args)
        return self.end()

    def kill(self) -> None:
        """Kill it as the system does when memory runs out; it is left a zombie."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        """Let it end in the ordinary way."""
        self._connection.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _module(path: str, known: dict[str, ModuleType]) -> ModuleType:
    if path not in known:
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        assert spec is not None
        assert spec.loader is not None
        known[path] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(known[path])
    return known[path]


def main() -> None:
    """Run what is asked for until the other side closes."""
    # This folder must not hide packages of the same names.
    sys.path.pop(0)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve(Connection(int(sys.argv[1])))


def serve(connection: Connection) -> None:
    """Run what the other side of `connection` asks for until it closes."""
    known: dict[str, ModuleType] = {}
    while True:
        try:
            path, name, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(_module(path, known), name)(*args)))
        except BaseException as error:
            connection.send((False, type(error).__name__, traceback.format_exc()))


if __name__ == "__main__":
    main()
