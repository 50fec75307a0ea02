"""What a cell does to the world: files, network, processes, output.

A Python audit hook can never be taken away again, and from then on every audited call builds its
event for it, ``id()`` among them. So there is one hook for the process, put in place with the first
cell, and it returns at once when no cell runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import RefusedError

Input = tuple[str, int, int]
"""A file that was read: its path, and then its time of change in ns and its size."""

MAX_NOTED = 100
"""So many effects and inputs of a cell are kept; one effect is enough to never run it again."""

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_OWN = str(Path(__file__).resolve().parent.parent) + os.sep
_LIBRARIES = tuple(
    {os.path.realpath(p) + os.sep for p in (sys.prefix, sys.base_prefix)}
    | {p + os.sep for p in (sys.prefix, sys.base_prefix)}
)
_SYSTEM = ("/dev/", "/proc/", "/sys/", "/etc/", "/usr/share/zoneinfo/")
_MACHINERY = tuple(f"{os.sep}{name}{os.sep}" for name in ("IPython", "ipykernel", "jupyter_client"))

_EVENTS = {
    "os.system": "started a process",
    "os.exec": "started a process",
    "os.fork": "started a process",
    "os.forkpty": "started a process",
    "os.posix_spawn": "started a process",
    "os.spawn": "started a process",
    "os.kill": "sent a signal",
    "os.killpg": "sent a signal",
    "os.remove": "removed a file",
    "os.rename": "renamed a file",
    "os.rmdir": "removed a folder",
    "os.mkdir": "made a folder",
    "os.link": "made a link",
    "os.symlink": "made a link",
    "os.truncate": "changed a file",
    "os.chmod": "changed a file's mode",
    "os.chown": "changed a file's owner",
    "os.utime": "changed a file's times",
    "os.chdir": "changed the working directory",
    "os.putenv": "changed the environment",
    "os.unsetenv": "changed the environment",
    "os.setxattr": "changed a file",
    "os.removexattr": "changed a file",
    "os.lockf": "locked a file",
    "socket.connect": "used the network",
    "socket.bind": "used the network",
    "socket.sendto": "used the network",
    "socket.sendmsg": "used the network",
    "socket.getaddrinfo": "used the network",
    "socket.gethostbyname": "used the network",
    "builtins.input": "asked for input",
    "_thread.start_new_thread": "started a thread",
    "_thread.start_joinable_thread": "started a thread",
    "tempfile.mkstemp": "made a file",
    "tempfile.mkdtemp": "made a folder",
    "signal.pthread_kill": "sent a signal",
    "resource.setrlimit": "changed a limit of the process",
}
_MODULES = {
    "subprocess": "started a process",
    "pty": "started a process",
    "shutil": "changed files",
    "fcntl": "controlled a file",
    "ctypes": "called a C library",
    "ftplib": "used the network",
    "http": "used the network",
    "imaplib": "used the network",
    "poplib": "used the network",
    "smtplib": "used the network",
    "telnetlib": "used the network",
    "nntplib": "used the network",
    "urllib": "used the network",
    "webbrowser": "opened a browser",
    "syslog": "wrote to the system's log",
}
_LISTINGS = frozenset({"os.listdir", "os.scandir"})


class Watch:
    """What is seen while a cell runs; with `block`, whatever would have an effect fails instead."""

    def __init__(self, user_ns: dict[str, Any], *, block: bool = False) -> None:
        self.user_ns = user_ns
        self.block = block
        self.effects: dict[str, None] = {}
        self.inputs: dict[str, Input] = {}
        self._others = {t.ident for t in threading.enumerate()} - {threading.get_ident()}

    def note(self, effect: str) -> None:
        """Note an effect.

        Raises
        ------
        RefusedError
            If effects are blocked; a thread that was there before is let alone.
        """
        if self.block and threading.get_ident() in self._others:
            return
        if len(self.effects) < MAX_NOTED:
            self.effects[effect] = None
        if self.block:
            raise RefusedError(
                f"a cell that is run again {effect}; it did not do so before, so it was stopped"
            )

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path = _path(args[0])
            mode, flags = args[1], args[2]
            if path is None or path == os.devnull:
                return
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else flags & _WRITES
            if writes:
                if self._is_users():
                    self.note(f"wrote the file {path!r}")
            elif not path.startswith((*_LIBRARIES, *_SYSTEM)) and self._is_users():
                self._input(path)
        elif event in _LISTINGS:
            path = _path(args[0] if args and args[0] is not None else ".")
            if path is not None and not path.startswith(_LIBRARIES) and self._is_users():
                self._input(path)
        elif event == "sqlite3.connect":
            path = _path(args[0])
            if path not in (":memory:", "") and self._is_users():
                self.note(f"opened the database {path!r}")
        else:
            effect = _EVENTS.get(event) or _MODULES.get(event.partition(".")[0])
            if effect is not None and self._is_users():
                self.note(effect)

    def _input(self, path: str) -> None:
        path = os.path.abspath(path)
        if path not in self.inputs and len(self.inputs) < MAX_NOTED:
            self.inputs[path] = stat_input(path)

    def _is_users(self) -> bool:
        """Whether the event is the cell's doing, or that of a thread which may be a cell's.

        What an installed library does while it is imported is not: it is loaded already when the
        cell runs again. Neither is what the kernel itself does around a cell.
        """
        # The hook itself is one of our own files.
        frame: types.FrameType | None = sys._getframe(2).f_back
        library = True
        machinery = False
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_globals is self.user_ns:
                return True
            if file.startswith("<frozen importlib"):
                if library:
                    return False
            elif file.startswith(_OWN) or any(part in file for part in _MACHINERY):
                machinery = True
            elif not file.startswith(_LIBRARIES):
                library = library and file.startswith("<frozen")
            frame = frame.f_back
        return not machinery


_current: Watch | None = None
_installed = False
_install_lock = threading.Lock()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    watch = _current
    if watch is None or event in _QUIET:
        return
    try:
        watch._event(event, args)
    except RefusedError:
        raise
    except Exception:
        # A fault of ours must not fail what the user does; the cell counts as not observed.
        watch.effects["did something that could not be observed"] = None


_QUIET = frozenset(
    {"builtins.id", "import", "compile", "exec", "sys._getframe", "object.__getattr__",
     "object.__setattr__", "marshal.loads", "pickle.find_class", "code.__new__"}
)  # fmt: skip


def install(shell: Any) -> None:
    """Put the hook and the taps on the output in place, once for the process."""
    global _installed
    with _install_lock:
        if _installed:
            return
        _installed = True
        _tap_output(shell)
        sys.addaudithook(_hook)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Let `watch` see what happens inside the block, and no other watch."""
    before = start(watch)
    try:
        yield
    finally:
        start(before)


def start(watch: Watch | None) -> Watch | None:
    """Let `watch` see what happens from now on; return the one that did so far."""
    global _current
    before, _current = _current, watch
    return before


def stat_input(path: str) -> Input:
    """Return a file as it is now; one that is not there has a size of -1."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return path, 0, -1
    return path, found.st_mtime_ns, found.st_size


def _path(value: Any) -> str | None:
    """Return a path as text, ``None`` for a file descriptor."""
    if isinstance(value, (str, bytes, os.PathLike)):
        return os.fsdecode(value)
    return None


def _tap_output(shell: Any) -> None:
    """Notice what cells show; the classes are tapped, since the objects are looked at by users."""
    taps: list[tuple[Any, str, str]] = []
    stream = type(sys.stdout)
    if hasattr(stream, "set_parent"):
        taps.append((stream, "write", "printed"))
    publisher = type(shell.display_pub)
    taps += [(publisher, "publish", "displayed something"), (publisher, "clear_output", "cleared")]
    kernel = getattr(shell, "kernel", None)
    taps.append((type(kernel), "_input_request", "asked for input"))
    comm = getattr(sys.modules.get("ipykernel.comm.comm"), "BaseComm", None)
    taps.append((comm, "publish_msg", "spoke to the front end"))
    for owner, name, effect in taps:
        inner = getattr(owner, name, None)
        if inner is not None:
            setattr(owner, name, _tapped(inner, effect))
    for output in (sys.stdout, sys.stderr):
        # IPython puts the method aside while a cell runs, and back as the object's own.
        if type(output) is stream and "write" in vars(output):
            inner = vars(output)["write"]
            vars(output)["write"] = types.MethodType(
                _tapped(_without_self(inner), "printed"), output
            )


def _without_self(bound: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: bound(*args, **kwargs)


def _tapped(inner: Callable[..., Any], effect: str) -> Callable[..., Any]:
    @functools.wraps(inner)
    def tapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _current
        if watch is not None:
            watch.note(effect)
        return inner(self, *args, **kwargs)

    return tapped
