"""One database: opening, transactions that wait for locks, and errors in words."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)

from ..errors import BadInputError, StoreError
from . import sqlite
from .migrate import migrate, needs_migration

T = TypeVar("T")


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


class Database:
    """An open database at the schema of this code; safe to use from several threads.

    A process that forks must open its own.

    Parameters
    ----------
    url
        SQLAlchemy's URL, e.g. ``sqlite:////home/ann/.local/share/jupyter/gpu/store.sqlite``.
    lock_timeout_s
        How long a transaction waits for other processes before it fails.

    Raises
    ------
    BadInputError
        If `url` is not the URL of a database that can be shared by processes.
    StoreError
        If the database cannot be opened, is damaged, or has a newer schema; it is not changed then.
    """

    def __init__(self, url: str, *, lock_timeout_s: float = 10.0) -> None:
        self.path, self._engine = _engine(url, lock_timeout_s)
        self.name = (
            str(self.path)
            if self.path is not None
            else self._engine.url.render_as_string(hide_password=True)
        )
        self._writer = self._engine.execution_options(write=True)
        self._lock_timeout_s = lock_timeout_s
        # SQLite waits for locks by sleeping; threads of one process queue here instead.
        self._write_lock = threading.Lock()
        self._joined = threading.local()
        self._closed = False
        try:
            self._open()
        except BaseException:
            self._engine.dispose()
            raise

    def _open(self) -> None:
        if self.path is not None:
            sqlite.prepare_file(self.path)
        behind = self.read(lambda connection: needs_migration(connection, self.name))
        if self.path is not None:
            self._patiently(lambda: sqlite.use_write_ahead_log(self._engine))
        if behind:
            self.write(lambda connection: migrate(connection, self.name))

    def close(self) -> None:
        """Let all connections go; the database cannot be used afterwards."""
        self._closed = True
        self._engine.dispose()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` makes of a connection that reads one state of the database."""
        return self._patiently(lambda: _transaction(self._engine, work))

    def write(self, work: Callable[[Connection], T]) -> T:
        """Carry `work` out in one writing transaction: wholly, or not at all.

        Raises
        ------
        BadInputError
            If a value cannot be stored.
        StoreError
            If the database cannot be written; its former state stays.
        """
        if (joined := getattr(self._joined, "connection", None)) is not None:
            return work(joined)
        with self._write_lock:
            return self._patiently(lambda: _transaction(self._writer, work))

    def together(self, work: Callable[[], T]) -> T:
        """Carry out all that `work` writes in this thread in one transaction, wholly or not at all.

        While another process holds the lock, `work` is called again.
        """

        def join(connection: Connection) -> T:
            self._joined.connection = connection
            try:
                return work()
            finally:
                del self._joined.connection

        return self.write(join)

    def _patiently(self, step: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError(f"The store {self.name} is closed. Open it again to use it.")
        deadline = time.monotonic() + self._lock_timeout_s
        while True:
            try:
                return step()
            except (OverflowError, UnicodeEncodeError) as error:
                raise self._bad_value(error) from error
            except (SQLAlchemyError, sqlite.DRIVER_ERROR) as error:
                self._raise_unless_locked(error, deadline)
            # Spread out, so that waiting processes do not come back together.
            time.sleep(random.uniform(0.002, 0.02))  # noqa: S311

    def _raise_unless_locked(self, error: Exception, deadline: float) -> None:
        if isinstance(error, (IntegrityError, DataError)) or (
            isinstance(error, StatementError) and not isinstance(error, DBAPIError)
        ):
            raise self._bad_value(error.orig) from error
        if self.path is None:
            raise StoreError(f"The store {self.name} failed: {error}.") from error
        if not sqlite.is_locked(error):
            raise sqlite.explain(error, self.path) from error
        if time.monotonic() >= deadline:
            raise StoreError(
                f"The store {self.path} was locked by another process for more than "
                f"{self._lock_timeout_s:g} s. Nothing was stored; see which process holds it "
                f"(`fuser {self.path}`)."
            ) from error

    def _bad_value(self, why: object) -> BadInputError:
        return BadInputError(
            f"The store {self.name} cannot keep a value: {why}. Nothing was stored."
        )


def _transaction(engine: Engine, work: Callable[[Connection], T]) -> T:
    with engine.begin() as connection:
        return work(connection)


def _engine(url: str, lock_timeout_s: float) -> tuple[Path | None, Engine]:
    try:
        parsed = make_url(url)
        dialect = parsed.get_backend_name()
        if dialect != "sqlite":
            return None, create_engine(parsed, json_serializer=_json, pool_pre_ping=True)
        if not parsed.database or parsed.database.startswith((":", "file:")):
            raise BadInputError(
                f"The store's URL {url!r} names no file. Write sqlite:////absolute/path/of.sqlite."
            )
        path = Path(parsed.database).absolute()
        engine = create_engine(
            parsed.set(database=str(path)),
            json_serializer=_json,
            connect_args={"timeout": min(sqlite.BUSY_TIMEOUT_S, lock_timeout_s)},
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise BadInputError(
            f"The store's URL cannot be used: {error}. Write sqlite:////absolute/path/of.sqlite."
        ) from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"The store's URL needs the Python package {error.name}. Install it beside the server."
        ) from error
    sqlite.configure(engine)
    return path, engine
