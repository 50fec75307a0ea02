"""Objects in whatever fsspec opens: S3, Google Cloud Storage, Azure, SFTP and others."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from typing import Any

from ...errors import BadInputError, SnapshotError
from . import markers
from .backend import Entry, Lease, denied, from_os_error, full, lost, uploading, without_secrets

_ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss"})
"""Stores where an object appears whole when its upload ends; elsewhere it is renamed then."""

_BLOCK_BYTES = 8 << 20
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")

_DENIED = ("Credential", "Token", "Auth", "Permission", "Forbidden")
_LOST = ("Connect", "Endpoint", "Timeout", "Closed", "Disconnect", "Payload", "Proxy", "SSL")
_FULL_CODES = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"})
_MISSING_CODES = frozenset({"NoSuchBucket", "InvalidBucketName"})

_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "FSSPEC_")
"""What credentials and addresses are read from, besides files that no session changes."""

_file_systems: dict[tuple[int, str, str, str], Any] = {}


class FsspecBackend:
    """Objects below one URL."""

    path = None
    pack_limit = 1 << 30

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = without_secrets(url).rstrip("/")
        self._protocol = url.partition("://")[0]
        self._atomic = self._protocol in _ATOMIC
        self._pid = -1
        self._fs: Any = None
        self._root = ""
        try:
            import fsspec

            fsspec.get_filesystem_class(self._protocol)
        except ImportError as error:
            raise BadInputError(
                f"{self._protocol}:// stores need a package that is missing ({error}); run: "
                "pip install 'jupyter-gpu-predict[remote]'"
            ) from error
        except ValueError as error:
            raise BadInputError(
                f"{self._protocol}:// is no protocol that fsspec knows; use a path, redis:// or "
                "one of those that fsspec lists"
            ) from error

    def create(self, name: str) -> FsspecUpload:
        """Start to write an object."""
        return FsspecUpload(self, name)

    def put(self, name: str, data: bytes) -> None:
        """Write a small object."""
        if self._atomic:
            with self.told("write", writing=True):
                self.fs.pipe_file(self.full(name), data)
            return
        with uploading(self.create(name)) as upload:
            upload.write(memoryview(data))
            upload.finish()
            upload.publish()

    def read(self, name: str, start: int = 0) -> bytes:
        """Return an object from `start` on."""
        with self.told("read"):
            return bytes(self.fs.cat_file(self.full(name), start=start or None))

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """Read a part of an object."""
        with self.told("read"):
            data = self.fs.cat_file(self.full(name), start=offset, end=offset + len(into))
        into[: len(data)] = data
        return len(data)

    def entries(self, folder: str) -> list[Entry]:
        """Return what is in a folder but uploads under way."""
        try:
            with self.told("list objects"):
                infos = self.fs.ls(self.full(folder), detail=True)
        except FileNotFoundError:
            return []
        found = []
        for info in infos:
            base = info["name"].rstrip("/").rpartition("/")[2]
            if info["type"] == "file" and base and not base.startswith("."):
                found.append(Entry(f"{folder}/{base}", int(info["size"]), _modified_s(info)))
        return found

    def delete(self, name: str) -> None:
        """Remove an object."""
        with contextlib.suppress(FileNotFoundError), self.told("delete"):
            self.fs.rm_file(self.full(name))

    def settle(self) -> None:
        """Do nothing: what such a store has taken is durable."""

    def writing(self) -> AbstractContextManager[Lease]:
        """Hold off collectors by a marker."""
        if not self._atomic:
            for folder in ("packs", "manifests", "notes", markers.FOLDER):
                with self.told("make folders", writing=True):
                    self.fs.makedirs(self.full(folder), exist_ok=True)
        return markers.writing(self)

    def collecting(self) -> AbstractContextManager[Lease | None]:
        """Hold off writers by a marker."""
        if not self.entries("manifests") and not self.entries("packs"):
            return contextlib.nullcontext()
        return markers.collecting(self)

    def sweep(self) -> int:
        """Remove temporary objects."""
        freed = 0
        if not self._atomic:
            for folder in ("packs", "manifests", "notes"):
                with contextlib.suppress(FileNotFoundError), self.told("delete"):
                    for info in self.fs.ls(self.full(folder), detail=True):
                        if info["name"].rpartition("/")[2].startswith("."):
                            self.fs.rm_file(info["name"])
                            freed += int(info["size"])
        return freed

    @property
    def fs(self) -> Any:
        """The file system; one for each process, as connections do not survive a fork."""
        if self._pid != os.getpid():
            with self.told("open it"):
                self._fs, self._root = _file_system(self.url, self._options())
            self._pid = os.getpid()
        return self._fs

    @property
    def atomic(self) -> bool:
        """Whether an object appears whole when its upload ends."""
        return self._atomic

    def full(self, name: str) -> str:
        """Return the path of an object for the file system."""
        self.fs  # noqa: B018 - its root is known once it is open
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def told(self, doing: str, *, writing: bool = False) -> Iterator[None]:
        """Turn whatever a file system raises into one of our errors."""
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and not writing and not _is_bucket(error):
                raise
            raise self._error(error, doing) from error

    def _error(self, error: Exception, doing: str) -> SnapshotError:
        names = [type(e).__name__ for e in _chain(error)]
        codes = {_code(e) for e in _chain(error)}
        said = f"{type(error).__name__}: {error}"
        if codes & _FULL_CODES:
            return full(self.shown, doing, said)
        if isinstance(error, FileNotFoundError):
            return denied(self.shown, doing, "there is no such bucket or folder")
        if isinstance(error, PermissionError):
            return denied(self.shown, doing, said)
        if isinstance(error, (ConnectionError, TimeoutError)):
            return lost(self.shown, doing, said)
        for words, make in ((_DENIED, denied), (_LOST, lost)):
            if any(word in name for name in names for word in words):
                return make(self.shown, doing, said)
        if isinstance(error, OSError):
            return from_os_error(error, self.shown, doing)
        return SnapshotError(f"could not {doing} at {self.shown}: {said}")

    def _options(self) -> dict[str, Any]:
        from fsspec.config import conf

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._protocol in ("s3", "s3a") and "config_kwargs" not in conf.get("s3", {}):
            # s3fs repeats a request by itself; both together take minutes to tell a lost store.
            options["config_kwargs"] = {
                "retries": {"total_max_attempts": 1},
                "connect_timeout": 5,
                "read_timeout": 30,
            }
        return options


class FsspecUpload:
    """An object being written block by block."""

    def __init__(self, backend: FsspecBackend, name: str) -> None:
        self._backend = backend
        self._final = backend.full(name)
        folder, _, base = self._final.rpartition("/")
        self._name = self._final
        if not backend.atomic:
            self._name = f"{folder}/.{secrets.token_hex(8)}-{base}"
        self._pid = os.getpid()
        self._published = False
        with self._told():
            self._file = backend.fs.open(self._name, "wb", block_size=_BLOCK_BYTES)

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        if self._pid != os.getpid():
            raise SnapshotError(
                f"an upload to {self._backend.shown} cannot go on in a forked process; open the "
                "writer there"
            )
        with self._told():
            self._file.write(data)

    def finish(self) -> None:
        """Close what has to be renamed; what need not appears when it is closed."""
        if not self._backend.atomic:
            with self._told():
                self._file.close()

    def publish(self) -> None:
        """Close or rename the object."""
        with self._told():
            if self._backend.atomic:
                self._file.close()
            else:
                self._rename()
        self._published = True

    def _rename(self) -> None:
        try:
            self._backend.fs.mv(self._name, self._final)
        except FileNotFoundError as error:
            raise SnapshotError(
                f"{self._backend.shown} no longer has what was being written for {self._final}; "
                "save again"
            ) from error

    def abort(self) -> None:
        """Drop the upload."""
        if self._published or self._pid != os.getpid():
            return
        with contextlib.suppress(Exception):
            self._file.discard()
        # A buffered file that is not marked so is uploaded when it is forgotten.
        with contextlib.suppress(Exception):
            self._file.closed = True
        if not self._backend.atomic:
            with contextlib.suppress(Exception):
                self._backend.fs.rm_file(self._name)

    def _told(self) -> AbstractContextManager[None]:
        return self._backend.told("write", writing=True)


def _file_system(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; making one takes S3 0.3 seconds."""
    from fsspec import get_filesystem_class

    protocol = url.partition("://")[0]
    kind = get_filesystem_class(protocol)
    options = {**options, **kind._get_kwargs_from_urls(url)}
    environment = sorted(i for i in os.environ.items() if i[0].startswith(_ENVIRONMENT))
    key = (os.getpid(), protocol, repr(sorted(options.items())), repr(environment))
    if key not in _file_systems:
        _file_systems[key] = kind(**options)
    return _file_systems[key], str(kind._strip_protocol(url)).rstrip("/")


def _modified_s(info: dict[str, Any]) -> float:
    for key in _TIMES:
        value = info.get(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime):
            zoned = value if value.tzinfo else value.replace(tzinfo=timezone.utc)
            return zoned.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return ""


def _is_bucket(error: BaseException) -> bool:
    return any(_code(e) in _MISSING_CODES for e in _chain(error))
