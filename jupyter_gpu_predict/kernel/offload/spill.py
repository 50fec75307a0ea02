"""Nameless files that hold device memory where host memory is not to."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterable

from ...errors import RefusedError, StorageFullError
from .region import ALIGN_BYTES, Region

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.ENOSYS}
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_NAME = "spill-"
_ZEROS = ctypes.create_string_buffer(ALIGN_BYTES)
_LIBC = ctypes.CDLL(None, use_errno=True)


class SpillFile:
    """A file of `nbytes` in `folder` that is gone when nothing maps it any more.

    Its room on the disk is set aside at once, where the file system can do that.

    Raises
    ------
    StorageFullError
        If the disk has no room.
    RefusedError
        If the file cannot be made.
    """

    def __init__(self, folder: str, nbytes: int) -> None:
        self.folder = folder
        self.nbytes = nbytes
        self._fd = -1
        self._end = 0
        try:
            self._fd = _open(folder)
            os.ftruncate(self._fd, nbytes)
            _reserve(self._fd, nbytes)
        except OSError as e:
            self.close()
            raise _error(e, self) from e

    def write(self, spans: Iterable[tuple[int, int]]) -> None:
        """Add memory given as (address, bytes), each padded to `ALIGN_BYTES` as in a chunk.

        Raises
        ------
        StorageFullError
            If the disk has no room.
        RefusedError
            If the file cannot be written.
        """
        try:
            self._end = _write(self._fd, _padded(spans), self._end)
        except OSError as e:
            raise _error(e, self) from e

    def mapped(self) -> Region:
        """Return the file's bytes as memory; what is written to it does not reach the file.

        Raises
        ------
        RefusedError
            If it cannot be mapped.
        """
        try:
            region = Region(
                self._fd,
                self.nbytes,
                flags=mmap.MAP_PRIVATE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except OSError as e:
            raise _error(e, self) from e
        region.enroll()
        return region

    def close(self) -> None:
        """Let go of the file; a mapping of it lives on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _error(e: OSError, file: SpillFile) -> RefusedError | StorageFullError:
    if e.errno in _FULL:
        return StorageFullError(
            f"no room in {file.folder} to spill {file.nbytes} bytes of device memory "
            f"({e.strerror}); free disk space or choose another spill folder"
        )
    return RefusedError(
        f"device memory cannot be spilled to {file.folder}: {e.strerror or e}; choose a spill "
        "folder that can be written"
    )


def _open(folder: str) -> int:
    """Open a nameless file in a folder of ours that nobody else can enter."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    info = os.stat(folder)
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise PermissionError(
            errno.EPERM, "the folder is open to other users; make it yours with mode 0700", folder
        )
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as e:
        if e.errno not in {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}:
            raise
    # A process that died between these two calls left its name behind; nobody needs such a name.
    for name in os.listdir(folder):
        if name.startswith(_NAME):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    fd, path = tempfile.mkstemp(dir=folder, prefix=_NAME)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return fd


def _reserve(fd: int, nbytes: int) -> None:
    """Set the file's room aside; `os.posix_fallocate` would write where that cannot be done."""
    call = getattr(_LIBC, "fallocate", None)
    if call is None:
        return
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, 0, 0, nbytes):
        code = ctypes.get_errno()
        if code in _CANNOT_RESERVE:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _padded(spans: Iterable[tuple[int, int]]) -> deque[tuple[int, int]]:
    padded: deque[tuple[int, int]] = deque()
    for address, nbytes in spans:
        padded.append((address, nbytes))
        if nbytes % ALIGN_BYTES:
            padded.append((ctypes.addressof(_ZEROS), ALIGN_BYTES - nbytes % ALIGN_BYTES))
    return padded


def _write(fd: int, spans: deque[tuple[int, int]], position: int) -> int:
    """Write from `position` on and return where that ends."""
    while spans:
        batch = [spans.popleft() for _ in range(min(len(spans), _IOV_MAX))]
        buffers = [(ctypes.c_char * n).from_address(a) for a, n in batch]
        written = os.pwritev(fd, buffers, position)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        position += written
        rest = []
        for address, nbytes in batch:
            done = min(written, nbytes)
            written -= done
            if done < nbytes:
                rest.append((address + done, nbytes - done))
        spans.extendleft(reversed(rest))
    return position
