"""What is deleted when it is too old or too much."""

from __future__ import annotations

import math

from sqlalchemy import Column, ColumnElement, and_, delete, or_, select, true
from sqlalchemy.engine import Connection

from ..errors import BadInputError
from . import schema
from .database import Database

_BATCH = 2000
"""Rows deleted in one transaction, so that other writers wait milliseconds only."""


def prune(database: Database, before_s: float, max_rows: int) -> dict[str, int]:
    """Delete rows from before `before_s` and beyond `max_rows`; return how many by table."""
    if math.isnan(before_s) or max_rows < 0:
        raise BadInputError(
            f"Retention of rows since {before_s} and at most {max_rows} makes no sense. Give a "
            "time and a number of rows that is zero or more."
        )
    ended = schema.operations.c.ended_s.is_not(None)
    return {
        time.table.name: _prune(database, time, may_go, before_s=before_s, max_rows=max_rows)
        for time, may_go in (
            (schema.cell_runs.c.start_s, true()),
            (schema.demand.c.t_s, true()),
            (schema.events.c.t_s, true()),
            (schema.operations.c.made_s, ended),
        )
    }


def _prune(
    database: Database,
    t: Column[float],
    may_go: ColumnElement[bool],
    *,
    before_s: float,
    max_rows: int,
) -> int:
    table = t.table
    row_id = table.c.id
    first_too_many = (
        select(t, row_id).where(may_go).order_by(t.desc(), row_id.desc()).offset(max_rows).limit(1)
    )

    def read_last(db: Connection) -> ColumnElement[bool]:
        last = db.execute(first_too_many).one_or_none()
        if last is None:
            return t < before_s
        return or_(t < before_s, t < last[0], and_(t == last[0], row_id <= last[1]))

    too_old = database.read(read_last)
    batch = select(row_id).where(may_go, too_old).limit(_BATCH).scalar_subquery()
    delete_some = delete(table).where(row_id.in_(batch))
    deleted = 0
    while True:
        some = database.write(lambda db: db.execute(delete_some).rowcount)
        deleted += some
        if some < _BATCH:
            return deleted
