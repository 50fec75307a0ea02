"""Whether a store works, for `jupyter gpu doctor`."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ..errors import BadInputError, StoreError
from . import sqlite
from .trace_store import Store


def check_store(url: str) -> tuple[bool, str, str]:
    """Return whether the store at `url` can be read and written, in what state it is, the remedy.

    A store that does not exist yet is not made: then its folder is looked at. One of an older
    schema is brought up to date, as the server would do.
    """
    path = _sqlite_path(url)
    if path is not None and not path.exists():
        return _check_place(path)
    try:
        with Store(url, lock_timeout_s=2.0) as store:
            database = store.database
            if path is not None and (damage := database.read(sqlite.damage)):
                return (
                    False,
                    f"{path} is damaged: {damage}",
                    "Move the file aside (with its -wal and -shm files) to start afresh.",
                )
            # Taking an epoch is a real write that does no harm.
            store.next_epoch()
            journal = "" if path is None else f", journal {database.read(sqlite.journal_mode)}"
            return True, f"{database.name} can be read and written{journal}", ""
    except (StoreError, BadInputError) as error:
        fault, _, remedy = str(error).partition(". ")
        return False, fault, remedy or "See the store's URL in the configuration."


def _sqlite_path(url: str) -> Path | None:
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    if parsed.database.startswith((":", "file:")):
        return None
    return Path(parsed.database).absolute()


def _check_place(path: Path) -> tuple[bool, str, str]:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    effective = os.access in os.supports_effective_ids
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        return True, f"{path} does not exist yet and will be made", ""
    return (
        False,
        f"{path} cannot be made: {folder} is not a folder this user may write to",
        f"Make {folder} writable or configure another place for the store.",
    )
