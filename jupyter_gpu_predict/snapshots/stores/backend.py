"""What a place that keeps objects must be able to do, and how its faults are told."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ...errors import (
    SnapshotError,
    StorageAccessError,
    StorageFullError,
    StorageUnavailableError,
)

_T = TypeVar("_T")

_REQUESTS = 8

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_LOST = frozenset(
    {
        errno.EIO,
        errno.ENODEV,
        errno.ENOTCONN,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
    }
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a store; `modified_s` is by the clock of the store."""

    name: str
    nbytes: int
    modified_s: float


class Upload(Protocol):
    """An object being written; nobody sees it before `publish`."""

    def write(self, data: memoryview) -> None:
        """Append `data`, which the caller may reuse afterwards."""

    def finish(self) -> None:
        """Make the bytes durable; nothing can be appended any more."""

    def publish(self) -> None:
        """Give the object its name, all at once."""

    def abort(self) -> None:
        """Drop what was written, or do nothing if it was published; never raises."""


class Lease(Protocol):
    """The right to write, held against the removal of garbage, or the other way round."""

    def renew(self) -> bool:
        """Keep the right; False if it was lost for a time, in which others had theirs."""


class Backend(Protocol):
    """Objects with names like ``packs/x.pack``; a missing one raises `FileNotFoundError`.

    Every other fault is one of the errors `StorageFullError`, `StorageAccessError`,
    `StorageUnavailableError` and `SnapshotError`.
    """

    @property
    def url(self) -> str:
        """What opens the store again."""

    @property
    def shown(self) -> str:
        """The URL without its secrets, or the path."""

    @property
    def path(self) -> Path | None:
        """The folder, if it is one of this machine."""

    @property
    def pack_limit(self) -> int:
        """Most bytes of chunks in a pack."""

    def create(self, name: str) -> Upload:
        """Start to write an object."""

    def put(self, name: str, data: bytes) -> None:
        """Write a small object at once, in the place of one that is there."""

    def read(self, name: str, start: int = 0) -> bytes:
        """Return an object from `start` on."""

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """Read from `offset` on and return how many bytes there were."""

    def entries(self, folder: str) -> list[Entry]:
        """Return what is in a folder, in no order; none if it is missing."""

    def delete(self, name: str) -> None:
        """Remove an object; one that has gone already is no error."""

    def settle(self) -> None:
        """Make everything published or deleted so far survive a crash."""

    def writing(self) -> AbstractContextManager[Lease]:
        """Hold off the removal of garbage; waits while it goes on."""

    def collecting(self) -> AbstractContextManager[Lease | None]:
        """Hold off writers; gives None without waiting if one is there."""

    def sweep(self) -> int:
        """Remove what uploads that broke off have left, while writers are held off."""


def each(backend: Backend, call: Callable[[Entry], _T], entries: Sequence[Entry]) -> list[_T]:
    """Return `call` of every entry, several at once where each takes a request."""
    if backend.path is not None or len(entries) < 3:
        return [call(entry) for entry in entries]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(call, entries))


def without_secrets(url: str) -> str:
    """Return `url` without user, password and query, for showing it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def told(place: object, doing: str, *, missing: bool = False) -> Iterator[None]:
    """Turn an `OSError` into the error that says what to do.

    With `missing` a `FileNotFoundError` stays as it is.
    """
    try:
        yield
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise
        raise from_os_error(error, place, doing) from error


@contextmanager
def uploading(upload: Upload) -> Iterator[Upload]:
    """Abort an upload if the block fails."""
    try:
        yield upload
    except BaseException:
        upload.abort()
        raise


def from_os_error(error: OSError, place: object, doing: str) -> SnapshotError:
    """Return our error for a fault of the operating system while `doing` something to `place`."""
    said = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return full(place, doing, said)
    if error.errno in _DENIED:
        return denied(place, doing, said)
    if error.errno in _LOST or isinstance(error, (ConnectionError, TimeoutError)):
        return lost(place, doing, said)
    return SnapshotError(f"could not {doing} at {place}: {error}")


def full(place: object, doing: str, said: object) -> StorageFullError:
    """Return the error for a place without room."""
    return StorageFullError(
        f"no room to {doing} at {place} ({said}); delete snapshots or choose another place. "
        "Earlier snapshots are whole"
    )


def denied(place: object, doing: str, said: object) -> StorageAccessError:
    """Return the error for a place that refuses us."""
    return StorageAccessError(
        f"{place} does not let us {doing} ({said}); correct the credentials or rights, or choose "
        "another place"
    )


def lost(place: object, doing: str, said: object) -> StorageUnavailableError:
    """Return the error for a place that does not answer."""
    return StorageUnavailableError(
        f"{place} did not answer when we tried to {doing} ({said}); try again when it is back. "
        "Earlier snapshots are whole"
    )
