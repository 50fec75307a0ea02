"""40 MB of good variables among twelve that cannot be pickled."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Change, Namespace, Session, checksum

DOOMED = (
    "u_generator",
    "u_lock",
    "u_socket",
    "u_database",
    "u_file",
    "u_thread",
    "u_coroutine",
    "u_async_generator",
    "u_frame",
    "u_pointer",
    "u_memoryview",
    "u_process",
)


def session(scale: float) -> Session:
    n = int(2_000_000 * scale)
    cells = (
        (
            "import collections, ctypes, socket, sqlite3, subprocess, sys, tempfile, threading\n"
            "import numpy as np"
        ),
        (
            f"g0 = np.arange({n}, dtype=float); g1 = np.arange({n}) * 2\n"
            "g2 = {'a': [1, 2, {'b': 3}]}; g3 = 'text' * 1000\n"
            f"g4 = [np.ones({n // 2})] * 3"
        ),
        "class Conf:\n    def __init__(self): self.n = 3; self.arr = np.arange(5)",
        "g5 = Conf(); g6 = lambda q: q * g5.n",
        "def g7(q):\n    k = 4\n    def inner(z): return z * k + q\n    return inner",
        "g8 = g7(2); g9 = collections.Counter('hello world')",
        "u_generator = (i * i for i in range(10)); squares = [next(u_generator)]",
        (
            "u_lock = threading.Lock(); u_socket = socket.socket()\n"
            "u_database = sqlite3.connect(':memory:')"
        ),
        "u_file = tempfile.TemporaryFile('w+'); u_file.write('hi'); u_file.flush()",
        "u_thread = threading.Thread(target=lambda: None); u_frame = sys._getframe()",
        "async def later(): return 1",
        "async def each(): yield 1",
        (
            "u_coroutine = later(); u_async_generator = each()\n"
            "u_pointer = ctypes.pointer(ctypes.c_int(3))\n"
            "u_memoryview = memoryview(bytearray(10))\n"
            "u_process = subprocess.Popen(['true'])"
        ),
    )
    changes = (Change("change", "g2['a'].append(5)"),)
    return Session(("numpy",), cells, changes, _values, _aliases, doomed=DOOMED)


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    return {
        "g0": lambda: checksum(g["g0"]),
        "g1": lambda: checksum(g["g1"]),
        "g2": lambda: g["g2"],
        "g3": lambda: g["g3"],
        "g4": lambda: [checksum(a) for a in g["g4"]],
        "g5": lambda: (g["g5"].n, g["g5"].arr.tolist()),
        "g6": lambda: g["g6"](5),
        "g7": lambda: g["g7"](1)(1),
        "g8": lambda: g["g8"](3),
        "g9": lambda: sorted(g["g9"].items()),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    def follows() -> bool:
        """Tell whether a restored function sees what the session assigns from then on."""
        g["g5"].n = 7
        return bool(g["g6"](5) == 35)

    return {
        "g4": lambda: g["g4"][0] is g["g4"][2],
        "g5's class": lambda: type(g["g5"]) is g["Conf"],
        "g6 uses g5": follows,
    }
