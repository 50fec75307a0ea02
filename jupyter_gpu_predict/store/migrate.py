"""Brings a database to the schema of this code, whoever else does the same at that moment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection

from ..errors import StoreError
from .schema import HEAD, VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config


def revision(connection: Connection) -> str | None:
    """Return the schema revision the database is at, ``None`` if it was never migrated."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return None if found is None else str(found)


def needs_migration(connection: Connection, name: str) -> bool:
    """Return whether the database called `name` is behind this code.

    Raises
    ------
    StoreError
        If its schema is newer than this code, or its tables are another program's.
    """
    found = revision(connection)
    if found == HEAD:
        return False
    if found is None:
        strangers = sorted(set(inspect(connection).get_table_names()) & set(metadata.tables))
        if strangers:
            raise StoreError(
                f"The store {name} was not changed: it has tables called "
                f"{', '.join(strangers)} that this package did not make. Configure a database of "
                "its own for the store."
            )
        return True
    if not _is_known(found):
        raise StoreError(
            f"The store {name} was not changed: its schema {found} is newer than {HEAD}, the "
            "newest that this version of jupyter-gpu-predict knows. Upgrade the package or "
            "configure another place for the store."
        )
    return True


def migrate(connection: Connection, name: str) -> None:
    """Bring the database called `name` to the newest schema, in the transaction of `connection`.

    The caller has begun a writing transaction, so a second process waits for it and then finds
    nothing to do.
    """
    if not needs_migration(connection, name):
        return
    from alembic import command

    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # The option is interpolated, so a percent sign in the path has to be doubled.
    folder = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", folder)
    return config


def _is_known(found: str) -> bool:
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(_config())
    return any(script.revision == found for script in scripts.walk_revisions())
