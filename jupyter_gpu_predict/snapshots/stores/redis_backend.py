"""Objects in Redis, for small state that must come back at once.

Durable is what the server makes so; it needs ``maxmemory-policy noeviction``, or it will throw
chunks away.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ...errors import BadInputError, SnapshotError
from . import markers
from .backend import Entry, Lease, denied, full, lost, without_secrets

DEFAULT_PREFIX = "jupyter-gpu-predict"

_TIMEOUT_S = 30.0
_CONNECT_TIMEOUT_S = 10.0


class RedisBackend:
    """One key for each object, and a sorted set of names and times for each folder.

    The keys begin with the ``prefix`` in the query of the URL, as in
    ``redis://host:6379/0?prefix=team``.
    """

    path = None
    pack_limit = 64 << 20

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise BadInputError(
                "redis:// stores need the package redis; run: "
                "pip install 'jupyter-gpu-predict[remote]'"
            ) from error
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        self.url = url
        self.shown = without_secrets(url).rstrip("/")
        self.prefix = query.pop("prefix", DEFAULT_PREFIX)
        self._errors = redis.exceptions
        plain = urlunsplit(parts._replace(query=urlencode(query)))
        try:
            self.client: Any = redis.Redis.from_url(
                plain, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_CONNECT_TIMEOUT_S
            )
        except (ValueError, TypeError) as error:
            raise BadInputError(
                f"{self.shown} is no URL of a Redis server ({error}); use redis://HOST:PORT/0"
            ) from error

    def create(self, name: str) -> RedisUpload:
        """Start to write an object."""
        return RedisUpload(self, name)

    def put(self, name: str, data: bytes) -> None:
        """Write a small object."""
        folder, _, base = name.rpartition("/")
        with self.told("write"), self.client.pipeline() as pipe:
            pipe.set(self.key(name), data)
            pipe.zadd(self.key(folder), {base: self.now_s()})
            pipe.execute()

    def now_s(self) -> float:
        """Return the time by the clock of the server."""
        with self.told("ask the time"):
            seconds, micros = self.client.time()
        return float(seconds + micros / 1e6)

    def read(self, name: str, start: int = 0) -> bytes:
        """Return an object from `start` on."""
        with self.told("read"):
            data = bytes(self.client.getrange(self.key(name), start, -1))
        if not data:
            raise FileNotFoundError(name)
        return data

    def read_into(self, name: str, offset: int, into: memoryview) -> int:
        """Read a part of an object."""
        with self.told("read"):
            data = self.client.getrange(self.key(name), offset, offset + len(into) - 1)
            if not data and not self.client.exists(self.key(name)):
                raise FileNotFoundError(name)
        data = data[: len(into)]  # a range of no bytes cannot be asked for
        into[: len(data)] = data
        return len(data)

    def entries(self, folder: str) -> list[Entry]:
        """Return what is in a folder."""
        with self.told("list objects"):
            found = self.client.zrange(self.key(folder), 0, -1, withscores=True)
            names = [(f"{folder}/{base.decode()}", score) for base, score in found]
            with self.client.pipeline(transaction=False) as pipe:
                for name, _ in names:
                    pipe.strlen(self.key(name))
                sizes = pipe.execute()
        return [
            Entry(name, size, score)
            for (name, score), size in zip(names, sizes, strict=True)
            if size  # a key that was evicted
        ]

    def delete(self, name: str) -> None:
        """Remove an object."""
        folder, _, base = name.rpartition("/")
        with self.told("delete"), self.client.pipeline() as pipe:
            pipe.delete(self.key(name))
            pipe.zrem(self.key(folder), base)
            pipe.execute()

    def settle(self) -> None:
        """Do nothing: how durable Redis is, is a matter of its configuration."""

    def writing(self) -> AbstractContextManager[Lease]:
        """Hold off collectors by a marker."""
        return markers.writing(self)

    def collecting(self) -> AbstractContextManager[Lease | None]:
        """Hold off writers by a marker."""
        return markers.collecting(self)

    def sweep(self) -> int:
        """Remove what uploads have left that were not ended."""
        freed = 0
        with self.told("delete"):
            for name in self.client.smembers(self.key("uploads")):
                key = self.key(name.decode())
                freed += int(self.client.strlen(key))
                self.client.delete(key)
                self.client.srem(self.key("uploads"), name)
        return freed

    def key(self, name: str) -> str:
        """Return the key of an object or folder."""
        return f"{self.prefix}:{name}"

    @contextlib.contextmanager
    def told(self, doing: str) -> Iterator[None]:
        """Turn what the client raises into one of our errors."""
        errors = self._errors
        try:
            yield
        except errors.RedisError as error:
            said = f"{type(error).__name__}: {error}"
            # Some of the refusals are, for the client, faults of the connection.
            if isinstance(
                error,
                (
                    errors.AuthenticationError,
                    errors.AuthorizationError,
                    errors.NoPermissionError,
                    errors.ReadOnlyError,
                ),
            ) or said.partition(": ")[2].startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
                raise denied(self.shown, doing, said) from error
            if isinstance(error, errors.OutOfMemoryError):
                raise full(self.shown, doing, said) from error
            if isinstance(error, (errors.ConnectionError, errors.TimeoutError)):
                raise lost(self.shown, doing, said) from error
            raise SnapshotError(f"could not {doing} at {self.shown}: {said}") from error
        except (ConnectionError, TimeoutError) as error:
            raise lost(self.shown, doing, error) from error


class RedisUpload:
    """A key that is renamed when it is whole."""

    def __init__(self, backend: RedisBackend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._temporary = f"upload-{secrets.token_hex(8)}"
        self._offset = 0
        with backend.told("write"):
            backend.client.sadd(backend.key("uploads"), self._temporary)

    def write(self, data: memoryview) -> None:
        """Write at the end, so that a request which the client repeats does no harm."""
        with self._backend.told(f"write {len(data)} bytes"):
            self._backend.client.setrange(self._key(), self._offset, data)
        self._offset += len(data)

    def finish(self) -> None:
        """Do nothing: there is no buffer."""

    def publish(self) -> None:
        """Rename the key and put the name in its folder, both at once."""
        backend = self._backend
        folder, _, base = self._name.rpartition("/")
        with backend.told("write"), backend.client.pipeline() as pipe:
            pipe.watch(self._key())
            if pipe.strlen(self._key()) != self._offset:
                raise SnapshotError(
                    f"{backend.shown} no longer has all of {self._name}, which was being "
                    "written; save again, and set maxmemory-policy to noeviction"
                )
            pipe.multi()
            pipe.rename(self._key(), backend.key(self._name))
            pipe.zadd(backend.key(folder), {base: backend.now_s()})
            pipe.srem(backend.key("uploads"), self._temporary)
            pipe.execute()

    def abort(self) -> None:
        """Remove the key."""
        with contextlib.suppress(SnapshotError), self._backend.told("delete"):
            self._backend.client.delete(self._key())
            self._backend.client.srem(self._backend.key("uploads"), self._temporary)

    def _key(self) -> str:
        return self._backend.key(self._temporary)
