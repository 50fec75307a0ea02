"""Fresh processes with torch and the accelerator loaded, in milliseconds instead of seconds.

A process that has loaded both and used no device forks; the child is as one that has just started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from emulators.accelerator import Devices, Worker

HERE = Path(__file__).resolve()


class ForkedWorker(Worker):
    """A `Worker` that was forked by a `Zygote`."""

    def __init__(self, pid: int, connection: Connection) -> None:
        self._pid = pid
        self._connection = connection

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._pid

    def _how(self) -> str:
        return ""

    def kill(self) -> None:
        """Kill it as the system does when memory runs out."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Let it end, and wait until it has."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
            while True:
                self._connection.recv()
        self._connection.close()


class Zygote:
    """The process that forks.

    Parameters
    ----------
    devices
        The devices that its children may see.
    modules
        What it loads for them besides torch.
    """

    def __init__(self, devices: Devices, modules: Sequence[str] = ()) -> None:
        self._ours, theirs = socket.socketpair()
        environ = devices.environ()
        environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[2]), environ["PYTHONPATH"]])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE), str(theirs.fileno()), *modules],
                env=environ,
                pass_fds=[theirs.fileno()],
            )

    def start(self, visible: Sequence[str]) -> ForkedWorker:
        """Return a new process that sees the devices with these UUIDs."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._ours, [json.dumps(list(visible)).encode()], [theirs.fileno()])
        connection = Connection(ours.detach())
        return ForkedWorker(connection.recv(), connection)

    def close(self) -> None:
        """End it; its children end when their connections close."""
        self._ours.close()
        self._process.wait(60)


def main() -> None:
    """Fork whenever asked, until the other side closes."""
    import torch

    del sys.path[0]
    for name in sys.argv[2:]:
        importlib.import_module(name)
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    assert not torch.emu.is_initialized()
    while True:
        text, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 1)
        if not text:
            return
        if os.fork() == 0:
            asked.close()
            _child(descriptors[0], json.loads(text))
        os.close(descriptors[0])


def _child(fd: int, visible: Sequence[str]) -> None:
    from emulators.accelerator.worker import serve

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    accelerator = sys.modules["emulated_accelerator"]
    accelerator.load(accelerator.devices.read_settings(os.environ))
    connection = Connection(fd)
    connection.send(os.getpid())
    try:
        serve(connection)
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
