"""Places that keep snapshots: a local folder, any fsspec URL, or Redis.

`open_store` gives the `SnapshotStore` of a place; what the place itself must be able to do is
`backend.Backend`.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from ...errors import BadInputError
from .catalogue import SnapshotInfo, validate_name
from .local import LocalBackend
from .store import SnapshotStore, Writer

__all__ = ["SnapshotInfo", "SnapshotStore", "Writer", "open_store", "validate_name"]


def open_store(where: str | os.PathLike[str]) -> SnapshotStore:
    """Return the store at `where`; nothing is made before the first save.

    Parameters
    ----------
    where
        A path or ``file://`` URL; ``redis://`` for Redis; any other URL is opened by fsspec.

    Raises
    ------
    BadInputError
        If it is empty, its protocol is not known, or the package for it is not installed.
    """
    text = os.fspath(where)
    if not text:
        raise BadInputError("a store of snapshots needs a path or a URL; this one is empty")
    if "://" not in text:
        return SnapshotStore(LocalBackend(os.path.expanduser(text)))
    parts = urlsplit(text)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise BadInputError(f"{text!r} names another machine; use file:///PATH")
        return SnapshotStore(LocalBackend(unquote(parts.path)))
    # Each of these imports a library that a machine without such a store need not have.
    if parts.scheme in ("redis", "rediss"):
        from .redis_backend import RedisBackend

        return SnapshotStore(RedisBackend(text))
    from .fsspec_backend import FsspecBackend

    return SnapshotStore(FsspecBackend(text))
