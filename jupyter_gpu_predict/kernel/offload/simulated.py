"""A simulated GPU: its memory is the CPU storages that torch itself allocated."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

from ...errors import DeviceError, RefusedError, StorageFullError
from .region import Region, layout
from .segments import Segment

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IOV_MAX = os.sysconf("SC_IOV_MAX")
_ZEROS = ctypes.create_string_buffer(64)


def is_here(storage: Any) -> bool:
    """Return whether a storage is CPU memory (whose memory it is, `host_reason` tells)."""
    return bool(storage.device.type == "cpu")


def host_reason(storage: Any) -> str | None:
    """Return why a CPU storage is plain host memory, ``None`` if it is the simulated GPU's."""
    if not storage.resizable():
        if storage.filename is not None:
            return "mapped from a file"
        return "shared with numpy or owned by another library"
    return "in shared memory" if storage.is_shared() else None


class SimulatedAdapter:
    """Device memory on the heap, host copies in an unlinked spill file that is mapped."""

    device = "simulated"

    def __init__(self, spill_dir: str) -> None:
        self._dir = spill_dir

    def quiesce(self, torch: Any) -> None:
        """Do nothing: CPU work is over when its call returns."""

    def segments(self, torch: Any) -> list[Segment]:
        """Return none: the heap keeps no account of whose a block is."""
        return []

    def save(self, torch: Any, storages: Sequence[Any]) -> tuple[Region, list[int]]:
        """Write the bytes of `storages` to a spill file and map it.

        Raises
        ------
        StorageFullError
            If the disk has no room.
        RefusedError
            If the spill file cannot be made, written or mapped.
        """
        offsets, total = layout([s.nbytes() for s in storages])
        try:
            fd = _open_spill(self._dir)
            try:
                _write(fd, _spans(storages))
                region = Region(
                    fd, total, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
            finally:
                os.close(fd)
        except OSError as e:
            if e.errno in _FULL:
                raise StorageFullError(
                    f"no room in {self._dir} to spill {total} bytes of device memory "
                    f"({e.strerror}); everything stays on the device: free disk space or choose "
                    "another spill folder"
                ) from e
            raise RefusedError(
                f"device memory cannot be spilled to {self._dir}: {e.strerror or e}; everything "
                "stays on the device"
            ) from e
        region.enroll()
        return region, offsets

    def alias(self, torch: Any, region: Region, offset: int, storage: Any) -> Any:
        """Return a storage over a part of `region`; its pointer keeps the region alive."""
        return torch.frombuffer(
            region, dtype=torch.uint8, offset=offset, count=storage.nbytes()
        ).untyped_storage()

    def attach(self, storage: Any, region: Region) -> None:
        """Do nothing: the pointer itself keeps the region alive."""

    def detach(self, storage: Any) -> None:
        """Do nothing."""

    def allocate(self, torch: Any, storage: Any) -> Any:
        """Return a fresh storage of the size and device of `storage`.

        Raises
        ------
        DeviceError
            If there is no memory for it.
        """
        nbytes = storage.nbytes()
        try:
            return torch.UntypedStorage(nbytes, device="cpu")
        except RuntimeError as e:
            raise DeviceError(
                f"no memory to bring {nbytes} bytes back to the simulated GPU; the state stays "
                "suspended and whole"
            ) from e

    def fetch(self, torch: Any, storage: Any, fresh: Any) -> None:
        """Copy the bytes of a suspended storage into `fresh`."""
        ctypes.memmove(fresh.data_ptr(), storage.data_ptr(), storage.nbytes())

    def settle(self, torch: Any) -> None:
        """Give freed heap memory back to the system, so that resident memory really falls."""
        trim_heap()


def trim_heap() -> None:
    """Give free heap memory back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _open_spill(folder: str) -> int:
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
    fd, path = tempfile.mkstemp(dir=folder, prefix="spill-")
    os.unlink(path)
    return fd


def _spans(storages: Sequence[Any]) -> deque[tuple[int, int]]:
    """Return (address, bytes) of each storage, padded as `layout` places them."""
    spans: deque[tuple[int, int]] = deque()
    for storage in storages:
        nbytes = storage.nbytes()
        spans.append((storage.data_ptr(), nbytes))
        if nbytes % 64:
            spans.append((ctypes.addressof(_ZEROS), 64 - nbytes % 64))
    return spans


def _write(fd: int, spans: deque[tuple[int, int]]) -> None:
    position = 0
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
