"""Everything that only SQLite needs: file modes, locking, journal, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection

from ..errors import StoreError

DRIVER_ERROR = sqlite3.Error
"""What the driver raises where SQLAlchemy does not wrap it."""

BUSY_TIMEOUT_S = 1.0
"""How long SQLite itself waits for a lock; `Database` repeats that until its own limit."""


def prepare_file(path: Path) -> None:
    """Make the file (0600) and its folder (0700) where they do not exist, and tighten the file.

    A folder that exists keeps its mode: it may not be ours alone.

    Raises
    ------
    StoreError
        If the file or its folder cannot be made or used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            # Not by opening it: closing any descriptor of the file would drop the locks that
            # SQLite holds on it in this process.
            info = path.stat()
            if info.st_mode & 0o077 and info.st_uid == os.geteuid():
                path.chmod(0o600)
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be made: {error.strerror or error}. Make its folder "
            "writable or configure another place for the store."
        ) from error


def configure(engine: Engine) -> None:
    """Let `engine` begin its transactions itself, with the lock at once where it will write.

    The driver's own way takes the lock at the first write, when waiting for it can only end in an
    error if another process has written since the transaction began.
    """

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        # With a write-ahead log NORMAL keeps the file whole at a power cut and spares an fsync
        # per transaction.
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def use_write_ahead_log(engine: Engine) -> None:
    """Let readers go on beside a writer; the choice is kept in the file.

    Some file systems cannot do it; SQLite then stays with its rollback journal, which is as safe
    and slower.
    """
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        # Asking first: setting it, even to what it is, waits for no lock but fails at one.
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchall() != [("wal",)]:
            cursor.execute("PRAGMA journal_mode = WAL")
        cursor.close()
    finally:
        raw.close()


def journal_mode(connection: Connection) -> str:
    """Return the name of the journal in use, ``"wal"`` where the file system allows it."""
    return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())


def damage(connection: Connection) -> str | None:
    """Return what SQLite's quick check finds wrong with the file, ``None`` if nothing."""
    found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA quick_check(5)")]
    return None if found == ["ok"] else "; ".join(found)


def is_locked(error: Exception) -> bool:
    """Return whether `error` says that another connection holds a lock."""
    text = str(getattr(error, "orig", error))
    return "is locked" in text or "database schema is locked" in text


_FAULTS = (
    (
        ("file is not a database", "malformed"),
        "is damaged or not a database",
        "Nothing was deleted: move it aside (with its -wal and -shm files) or put back a copy",
    ),
    (
        ("disk is full",),
        "has no room: the disk is full",
        "Free some space; what was stored before is unharmed",
    ),
    (
        ("readonly database",),
        "can only be read",
        "Make the file and its folder writable or configure another place for the store",
    ),
    (
        ("unable to open database file",),
        "cannot be opened",
        "See that its folder exists and that this user may write there, or configure another place",
    ),
    (
        ("disk I/O error",),
        "cannot be read or written: the disk or file system fails",
        "Look at the system's log, or configure a place on a local disk",
    ),
)


def explain(error: Exception, path: Path) -> StoreError:
    """Return `error` in words that name the file and what to do."""
    text = str(getattr(error, "orig", error))
    for marks, fault, remedy in _FAULTS:
        if any(mark in text for mark in marks):
            return StoreError(f"The store {path} {fault} ({text}). {remedy}.")
    return StoreError(f"The store {path} failed: {text}. `jupyter gpu doctor` checks it.")
