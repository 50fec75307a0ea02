"""The tables as the code sees them; `migrations/` makes them."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

HEAD = "0002"
"""Newest revision in `migrations/versions`; known here so that opening an up-to-date store does
not load alembic."""

VERSION_TABLE = "gpu_predict_schema"
"""Where the revision stands; not alembic's default name, which other programs in the same
PostgreSQL database (JupyterHub) use."""

EPOCH_COUNTER = "epoch"

metadata = MetaData()

# SQLite numbers rows by itself only if the key's type is exactly INTEGER.
_RowId = BigInteger().with_variant(Integer, "sqlite")

cell_runs = Table(
    "cell_runs",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("kernel_id", String, nullable=False),
    Column("notebook", Text),
    Column("cell_id", Text),
    Column("digest", String, nullable=False),
    Column("start_s", Double, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("peak_bytes", BigInteger, nullable=False),
    Column("end_bytes", BigInteger, nullable=False),
    Column("peak_source", String, nullable=False),
    Column("host_peak_bytes", BigInteger, nullable=False),
    Column("busy_s", Double, nullable=False),
    Column("outcome", String, nullable=False),
    Index("cell_runs_by_kernel", "kernel_id", "start_s"),
    Index("cell_runs_by_notebook", "notebook", "start_s"),
    Index("cell_runs_by_digest", "digest", "start_s"),
    Index("cell_runs_by_time", "start_s"),
)

demand = Table(
    "demand",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("kernel_id", String, nullable=False),
    Column("t_s", Double, nullable=False),
    Column("used_bytes", BigInteger, nullable=False),
    Column("suspended_bytes", BigInteger, nullable=False),
    Column("busy", Boolean, nullable=False),
    Index("demand_by_kernel", "kernel_id", "t_s"),
    Index("demand_by_time", "t_s"),
)

events = Table(
    "events",
    metadata,
    Column("id", _RowId, primary_key=True),
    Column("t_s", Double, nullable=False),
    Column("kind", String, nullable=False),
    Column("kernel_id", String),
    Column("data", JSON, nullable=False),
    Index("events_by_time", "t_s"),
    Index("events_by_kind", "kind", "t_s"),
    Index("events_by_kernel", "kernel_id", "t_s"),
)

leases = Table(
    "leases",
    metadata,
    Column("kernel_id", String, primary_key=True),
    Column("gpu_uuid", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("state", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("since_s", Double, nullable=False),
    Column("expires_s", Double),
    Column("resident_bytes", BigInteger, nullable=False),
)

kernels = Table(
    "kernels",
    metadata,
    Column("kernel_id", String, primary_key=True),
    Column("kernel_name", String, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("pid_created_s", Double, nullable=False),
    Column("pgid", BigInteger),
    Column("connection_file", Text, nullable=False),
    Column("ports", JSON, nullable=False),
    Column("notebook", Text),
    Column("session_id", String),
    Column("session_name", Text),
    Column("session_type", String),
    Column("root_dir", Text, nullable=False),
    Column("owner_pid", BigInteger, nullable=False),
    Column("owner_created_s", Double, nullable=False),
    Column("argv", JSON, nullable=False),
    Column("cwd", Text),
    Column("provisioner_info", JSON, nullable=False),
)

operations = Table(
    "operations",
    metadata,
    Column("id", String, primary_key=True),
    Column("kernel_id", String),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("progress", Double, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("made_s", Double, nullable=False),
    Column("ended_s", Double),
    Index("operations_by_kernel", "kernel_id", "made_s"),
    Index("operations_by_time", "made_s"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("kernel_id", String, primary_key=True),
    Column("data", JSON, nullable=False),
)

bandwidths = Table(
    "bandwidths",
    metadata,
    Column("host", String, primary_key=True),
    Column("data", JSON, nullable=False),
)
