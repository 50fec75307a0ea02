"""Objects as files of a folder.

::

    FOLDER/packs/NAME.pack       chunks
    FOLDER/manifests/ID.json     signed manifest, written last
    FOLDER/notes/ID.KIND.json    remarks on a snapshot
    FOLDER/lock                  shared by writers, exclusive for the removal of garbage
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from .backend import Entry, told, uploading

_WRITEBACK_BYTES = 32 << 20
_SYNC_FILE_RANGE_WRITE = 2


class LocalBackend:
    """Files under one path, for this user only."""

    pack_limit = 1 << 62

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path).absolute()
        self.url = self.shown = str(self.path)
        self._unsettled: set[Path] = set()

    def create(self, name: str) -> LocalUpload:
        """Start to write a file."""
        return LocalUpload(self.path / name, self._unsettled.add)

    def put(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with uploading(self.create(name)) as upload:
            upload.write(memoryview(data))
            upload.finish()
            upload.publish()

    def read(self, name: str, start: int = 0) -> bytes:
        """Return a file from `start` on."""
        with told(self.path / name, "read", missing=True), (self.path / name).open("rb") as file:
            file.seek(start)
            return file.read()

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """Read a part of a file straight into memory."""
        with told(self.path / name, "read", missing=True):
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(into):
                    count = os.preadv(fd, [into[done:]], offset + done)
                    if count == 0:
                        break
                    done += count
                return done
            finally:
                os.close(fd)

    def entries(self, folder: str) -> list[Entry]:
        """Return the files of a folder but those being written."""
        found = []
        with (
            contextlib.suppress(FileNotFoundError),
            told(self.path / folder, "list files", missing=True),
            os.scandir(self.path / folder) as files,
        ):
            for file in files:
                if not file.name.startswith("."):
                    with contextlib.suppress(FileNotFoundError):
                        stat = file.stat()
                        found.append(Entry(f"{folder}/{file.name}", stat.st_size, stat.st_mtime))
        return found

    def delete(self, name: str) -> None:
        """Remove a file."""
        with contextlib.suppress(FileNotFoundError), told(self.path / name, "delete", missing=True):
            (self.path / name).unlink()
            self._unsettled.add((self.path / name).parent)

    def settle(self) -> None:
        """Make names survive a crash."""
        while True:
            try:
                folder = self._unsettled.pop()
            except KeyError:  # another thread has taken the last one
                return
            with told(folder, "write"):
                fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def writing(self) -> Iterator[FileLease]:
        """Share the lock, creating the folder on first use."""
        for folder in ("", "packs", "manifests", "notes"):
            _make_folder(self.path / folder)
        with self._locked(fcntl.LOCK_SH, os.O_CREAT):
            yield FileLease()

    @contextlib.contextmanager
    def collecting(self) -> Iterator[FileLease | None]:
        """Take the lock alone, if nobody has it."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB, 0))
            except (BlockingIOError, FileNotFoundError):
                yield None
            else:
                yield FileLease()

    def sweep(self) -> int:
        """Remove temporary files."""
        freed = 0
        for folder in ("packs", "manifests", "notes"):
            for file in (self.path / folder).glob(".*"):
                with contextlib.suppress(FileNotFoundError), told(file, "delete", missing=True):
                    size = file.stat().st_size
                    file.unlink()
                    freed += size
        return freed

    @contextlib.contextmanager
    def _locked(self, how: int, create: int) -> Iterator[None]:
        with told(self.path, "lock", missing=not create):
            fd = os.open(self.path / "lock", os.O_RDWR | create | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.ExitStack() as errors:
                if not how & fcntl.LOCK_NB:
                    errors.enter_context(told(self.path, "lock"))
                fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)


class FileLease:
    """A lock that the kernel drops when the last process that has it ends."""

    def renew(self) -> bool:
        """Return True: it cannot be lost."""
        return True


class LocalUpload:
    """A temporary file that becomes `target`."""

    def __init__(self, target: Path, changed: Callable[[Path], None]) -> None:
        self._target = target
        self._changed = changed
        self._temporary = target.with_name(f".{secrets.token_hex(8)}")
        self._done = self._handed = 0
        with told(target, "write"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600)

    def write(self, data: memoryview) -> None:
        """Write straight from `data`, and let the disk begin with what is there."""
        nbytes = len(data)
        with told(self._target, f"write {nbytes} bytes"):
            done = os.write(self._fd, data)
            while done < nbytes:
                done += os.write(self._fd, data[done:])
        self._done += nbytes
        if _start_writeback is not None and self._done - self._handed >= _WRITEBACK_BYTES:
            # Its failure costs time only; fsync reports what matters.
            _start_writeback(
                self._fd, self._handed, self._done - self._handed, _SYNC_FILE_RANGE_WRITE
            )
            self._handed = self._done

    def finish(self) -> None:
        """Wait until the disk has all of it."""
        with told(self._target, f"write {self._done} bytes"):
            os.fsync(self._fd)
            fd, self._fd = self._fd, -1
            os.close(fd)

    def publish(self) -> None:
        """Rename it to its own name."""
        with told(self._target, "write"):
            os.rename(self._temporary, self._target)
        self._changed(self._target.parent)

    def abort(self) -> None:
        """Remove the temporary file."""
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def _make_folder(folder: Path) -> None:
    with told(folder, "make the folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _find_writeback() -> Callable[[int, int, int, int], int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


_start_writeback = _find_writeback()
