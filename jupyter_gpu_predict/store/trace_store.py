"""The store: what has to survive a restart of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from sqlalchemy import ColumnElement, Table, delete, insert, select, update
from sqlalchemy.engine import Connection, RowMapping

from ..control.ports import TraceStore
from ..core.model import CellRun, DemandSample, Lease, LeaseState, Outcome
from ..errors import BadInputError, NotFoundError, StoreError
from . import schema
from .database import Database
from .records import KernelRecord
from .retention import prune

_IN_LIST = 500
"""Most values in one ``IN (...)``; SQLite before 3.32 takes at most 999 in a statement."""


class Store(TraceStore):
    """Traces, demand, events, leases, kernels and operations in one database.

    Every method is one transaction: wholly done or not at all. Methods are synchronous, thread-safe
    and safe beside other processes with the same database. All of them raise `StoreError`, naming
    the file and the remedy, if the database cannot be read or written or stays locked for longer
    than `lock_timeout_s`; those that write raise `BadInputError` for values that cannot be kept
    (NaN, integers beyond 64 bits, data that is not JSON).

    Parameters
    ----------
    url
        SQLAlchemy's URL of the database, e.g. ``sqlite:////absolute/path/of.sqlite``. The file is
        made (mode 0600, its folder 0700) and brought to the newest schema.
    lock_timeout_s
        How long to wait for other processes.

    Raises
    ------
    BadInputError
        If `url` names no database that processes can share.
    StoreError
        If the database cannot be opened, is damaged or has a newer schema; it is unchanged then.
    """

    def __init__(self, url: str, *, lock_timeout_s: float = 10.0) -> None:
        self._database = Database(url, lock_timeout_s=lock_timeout_s)

    @property
    def database(self) -> Database:
        """The open database, for maintenance."""
        return self._database

    def close(self) -> None:
        """Let the database go."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def together(self, work: Callable[[], None]) -> None:
        """Carry out all that `work` writes in this thread in one transaction, wholly or not at all.

        `work` may be called more than once.
        """
        self._database.together(work)

    # ------------------------------------------------------------------ traces

    def add_cell_run(self, run: CellRun) -> None:
        """Append a cell run."""
        values = _values(run) | {"outcome": run.outcome.value}
        self._database.write(lambda db: db.execute(insert(schema.cell_runs), values))

    def add_demand(self, samples: Sequence[DemandSample]) -> None:
        """Append demand samples, all of them or none."""
        if samples:
            values = [_values(sample) for sample in samples]
            self._database.write(lambda db: db.execute(insert(schema.demand), values))

    def cell_runs(
        self,
        *,
        kernel_id: str | None = None,
        notebook: str | None = None,
        digests: Sequence[str] | None = None,
        limit: int = 500,
    ) -> list[CellRun]:
        """Return the latest `limit` cell runs that match all that is given, oldest first.

        An empty `digests` matches none.
        """
        table = schema.cell_runs
        where = _equal(table, kernel_id=kernel_id, notebook=notebook)

        def read(db: Connection) -> list[RowMapping]:
            if digests is None:
                return _latest(db, table, "start_s", where, limit)
            rows: list[RowMapping] = []
            wanted = sorted(set(digests))
            for first in range(0, len(wanted), _IN_LIST):
                some = table.c.digest.in_(wanted[first : first + _IN_LIST])
                rows += _latest(db, table, "start_s", [*where, some], limit)
            rows.sort(key=lambda row: (row["start_s"], row["id"]))
            return rows[max(0, len(rows) - limit) :]

        return [
            CellRun(**_without_id(row) | {"outcome": Outcome(row["outcome"])})
            for row in self._database.read(read)
        ]

    def demand(self, kernel_id: str, *, since_s: float) -> list[DemandSample]:
        """Return a kernel's demand samples from `since_s` on, oldest first."""
        table = schema.demand
        query = (
            select(*(table.c[field.name] for field in dataclasses.fields(DemandSample)))
            .where(table.c.kernel_id == kernel_id, table.c.t_s >= since_s)
            .order_by(table.c.t_s, table.c.id)
        )
        rows = self._database.read(lambda db: db.execute(query).all())
        return [DemandSample(*row) for row in rows]

    # ------------------------------------------------------------------ leases

    def save_lease(self, lease: Lease) -> None:
        """Insert or replace the lease of a kernel; a released one is taken out."""
        if lease.state is LeaseState.RELEASED:
            self._delete(schema.leases, "kernel_id", lease.kernel_id)
        else:
            self._save(schema.leases, "kernel_id", _values(lease) | {"state": lease.state.value})

    def leases(self) -> list[Lease]:
        """Return every lease that is not released, oldest first."""
        query = select(schema.leases).order_by(schema.leases.c.epoch)
        rows = self._database.read(lambda db: db.execute(query).mappings().all())
        return [Lease(**dict(row) | {"state": LeaseState(row["state"])}) for row in rows]

    def next_epoch(self) -> int:
        """Return a number greater than any it returned before, across restarts and processes."""
        table = schema.counters
        mine = table.c.name == schema.EPOCH_COUNTER

        def write(db: Connection) -> int | None:
            db.execute(update(table).where(mine).values(value=table.c.value + 1))
            return db.execute(select(table.c.value).where(mine)).scalar()

        epoch = self._database.write(write)
        if epoch is None:
            raise StoreError(
                f"The store {self._database.name} has lost its counter of epochs. Move the file "
                "aside to start afresh."
            )
        return epoch

    # ------------------------------------------------------------------ events

    def add_event(self, t_s: float, kind: str, data: Mapping[str, Any]) -> None:
        """Append to the event log.

        Raises
        ------
        BadInputError
            If `data` is not JSON, or has the key ``"t_s"`` or ``"kind"``.
        """
        if taken := data.keys() & {"t_s", "kind"}:
            raise BadInputError(
                f"An event's data cannot hold {', '.join(sorted(taken))}: that is the event's own. "
                f"Rename it in the {kind!r} event."
            )
        kernel_id = data.get("kernel_id")
        values = {
            "t_s": t_s,
            "kind": kind,
            "kernel_id": kernel_id if isinstance(kernel_id, str) else None,
            "data": dict(data),
        }
        self._database.write(lambda db: db.execute(insert(schema.events), values))

    def events(
        self,
        *,
        since_s: float = 0.0,
        kinds: Sequence[str] | None = None,
        kernel_id: str | None = None,
        limit: int = 1000,
    ) -> list[dict[str, Any]]:
        """Return the latest `limit` events that match, ``{"t_s", "kind", **data}``, oldest first.

        An empty `kinds` matches none.
        """
        table = schema.events
        where = [table.c.t_s >= since_s, *_equal(table, kernel_id=kernel_id)]
        if kinds is not None:
            where.append(table.c.kind.in_(sorted(set(kinds))))
        rows = self._database.read(lambda db: _latest(db, table, "t_s", where, limit))
        return [{"t_s": row["t_s"], "kind": row["kind"], **row["data"]} for row in rows]

    # ------------------------------------------------------------------ operations

    def save_operation(
        self,
        operation_id: str,
        *,
        kernel_id: str | None,
        kind: str,
        state: str,
        progress: float,
        made_s: float,
        ended_s: float | None = None,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Insert or replace an operation; `progress` is 0 to 1, `error` what a client is shown."""
        values = {
            "id": operation_id,
            "kernel_id": kernel_id,
            "kind": kind,
            "state": state,
            "progress": progress,
            "result": None if result is None else dict(result),
            "error": None if error is None else dict(error),
            "made_s": made_s,
            "ended_s": ended_s,
        }
        self._save(schema.operations, "id", values)

    def operation(self, operation_id: str) -> dict[str, Any]:
        """Return an operation by the names of `save_operation`, its id as ``"id"``.

        Raises
        ------
        NotFoundError
            If there is none with this id.
        """
        table = schema.operations
        query = select(table).where(table.c.id == operation_id)
        row = self._database.read(lambda db: db.execute(query).mappings().one_or_none())
        if row is None:
            raise NotFoundError(
                f"There is no operation {operation_id!r}. It may have ended long ago."
            )
        return dict(row)

    def operations(self, *, kernel_id: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
        """Return the latest `limit` operations, oldest first."""
        table = schema.operations
        where = _equal(table, kernel_id=kernel_id)
        rows = self._database.read(lambda db: _latest(db, table, "made_s", where, limit))
        return [dict(row) for row in rows]

    # ------------------------------------------------------------------ kernels

    def save_kernel(self, record: KernelRecord) -> None:
        """Insert or replace what a later server needs to go on with a kernel."""
        values = _values(record) | {
            "ports": dict(record.ports),
            "argv": list(record.argv),
            "provisioner_info": dict(record.provisioner_info),
        }
        self._save(schema.kernels, "kernel_id", values)

    def kernels(self, owner: tuple[int, float] | None = None) -> list[KernelRecord]:
        """Return the kernels on record; `owner` is a server's pid and start time."""
        table = schema.kernels
        where = [] if owner is None else _equal(table, owner_pid=owner[0], owner_created_s=owner[1])
        query = select(table).where(*where).order_by(table.c.pid_created_s, table.c.kernel_id)
        rows = self._database.read(lambda db: db.execute(query).mappings().all())
        return [KernelRecord(**dict(row) | {"argv": tuple(row["argv"])}) for row in rows]

    def forget_kernel(self, kernel_id: str) -> None:
        """Take a kernel off the record; its traces, events and lease stay."""
        self._delete(schema.kernels, "kernel_id", kernel_id)

    # ------------------------------------------------------------------ driver checkpoints

    def save_checkpoint(self, kernel_id: str, data: Mapping[str, Any]) -> None:
        """Insert or replace what is known of a kernel's driver checkpoints, as JSON."""
        self._save(schema.checkpoints, "kernel_id", {"kernel_id": kernel_id, "data": dict(data)})

    def checkpoints(self) -> dict[str, dict[str, Any]]:
        """Return what is known of every kernel's driver checkpoints, by kernel id."""
        return self._by_key(schema.checkpoints)

    def forget_checkpoint(self, kernel_id: str) -> None:
        """Drop what is known of a kernel's driver checkpoints."""
        self._delete(schema.checkpoints, "kernel_id", kernel_id)

    # ------------------------------------------------------------------ hosts

    def save_bandwidths(self, host: str, data: Mapping[str, Any]) -> None:
        """Insert or replace how quick a host was seen to be, as JSON."""
        self._save(schema.bandwidths, "host", {"host": host, "data": dict(data)})

    def bandwidths(self, host: str) -> dict[str, Any]:
        """Return how quick a host was seen to be, empty if that is not known."""
        return self._by_key(schema.bandwidths).get(host, {})

    # ------------------------------------------------------------------ retention

    def prune(self, before_s: float, max_rows: int) -> dict[str, int]:
        """Delete what is too old or too much, and return the number of rows deleted by table.

        Goes are traces, demand, events and ended operations from before `before_s`, and of each
        of these the oldest beyond `max_rows`. Leases, kernels and operations under way stay.

        Raises
        ------
        BadInputError
            If `before_s` is NaN or `max_rows` negative.
        """
        return prune(self._database, before_s, max_rows)

    # ------------------------------------------------------------------ rows

    def _save(self, table: Table, key: str, values: Mapping[str, Any]) -> None:
        mine = table.c[key] == values[key]

        def write(db: Connection) -> None:
            if db.execute(update(table).where(mine).values(values)).rowcount == 0:
                db.execute(insert(table), values)

        self._database.write(write)

    def _by_key(self, table: Table) -> dict[str, dict[str, Any]]:
        rows = self._database.read(lambda db: db.execute(select(table)).all())
        return {key: dict(data) for key, data in rows}

    def _delete(self, table: Table, key: str, value: str) -> None:
        self._database.write(lambda db: db.execute(delete(table).where(table.c[key] == value)))


def _values(record: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies deeply, which is slow and not needed for flat records.
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def _without_id(row: RowMapping) -> dict[str, Any]:
    values = dict(row)
    del values["id"]
    return values


def _equal(table: Table, **wanted: Any) -> list[ColumnElement[bool]]:
    return [table.c[name] == value for name, value in wanted.items() if value is not None]


def _latest(
    db: Connection, table: Table, time: str, where: Iterable[ColumnElement[bool]], limit: int
) -> list[RowMapping]:
    if limit < 0:
        raise BadInputError(f"A limit of {limit} rows is negative. Give zero or more.")
    query = (
        select(table).where(*where).order_by(table.c[time].desc(), table.c.id.desc()).limit(limit)
    )
    return list(reversed(db.execute(query).mappings().all()))
