"""Start real kernels quickly: a process that has imported what they need and forks for each.

Reads connection files from stdin, one a line, and answers with the process id of the kernel that
listens there. It runs no kernel and no user code itself, so each kernel begins with an empty
session. Two such processes with hash seeds of their own stand for the kernel before and after.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys

import ipykernel.ipkernel  # noqa: F401
from ipykernel.kernelapp import IPKernelApp

_PR_SET_PDEATHSIG = 1


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDWR), 0)
            os.dup2(0, 1)
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            sys.argv = ["kernel"]
            IPKernelApp.launch_instance(["-f", line.strip(), "--colors=nocolor"])
            os._exit(0)
        print(pid, flush=True)
        while True:  # those killed since
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break


main()
