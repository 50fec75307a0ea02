"""Traces, leases, kernels, operations and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    row_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "cell_runs",
        sa.Column("id", row_id, primary_key=True),
        sa.Column("kernel_id", sa.String, nullable=False),
        sa.Column("notebook", sa.Text),
        sa.Column("cell_id", sa.Text),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("start_s", sa.Double, nullable=False),
        sa.Column("end_s", sa.Double, nullable=False),
        sa.Column("peak_bytes", sa.BigInteger, nullable=False),
        sa.Column("end_bytes", sa.BigInteger, nullable=False),
        sa.Column("peak_source", sa.String, nullable=False),
        sa.Column("host_peak_bytes", sa.BigInteger, nullable=False),
        sa.Column("busy_s", sa.Double, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index("cell_runs_by_kernel", "cell_runs", ["kernel_id", "start_s"])
    op.create_index("cell_runs_by_notebook", "cell_runs", ["notebook", "start_s"])
    op.create_index("cell_runs_by_digest", "cell_runs", ["digest", "start_s"])
    op.create_index("cell_runs_by_time", "cell_runs", ["start_s"])
    op.create_table(
        "demand",
        sa.Column("id", row_id, primary_key=True),
        sa.Column("kernel_id", sa.String, nullable=False),
        sa.Column("t_s", sa.Double, nullable=False),
        sa.Column("used_bytes", sa.BigInteger, nullable=False),
        sa.Column("suspended_bytes", sa.BigInteger, nullable=False),
        sa.Column("busy", sa.Boolean, nullable=False),
    )
    op.create_index("demand_by_kernel", "demand", ["kernel_id", "t_s"])
    op.create_index("demand_by_time", "demand", ["t_s"])
    op.create_table(
        "events",
        sa.Column("id", row_id, primary_key=True),
        sa.Column("t_s", sa.Double, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("kernel_id", sa.String),
        sa.Column("data", sa.JSON, nullable=False),
    )
    op.create_index("events_by_time", "events", ["t_s"])
    op.create_index("events_by_kind", "events", ["kind", "t_s"])
    op.create_index("events_by_kernel", "events", ["kernel_id", "t_s"])
    op.create_table(
        "leases",
        sa.Column("kernel_id", sa.String, primary_key=True),
        sa.Column("gpu_uuid", sa.String, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("since_s", sa.Double, nullable=False),
        sa.Column("expires_s", sa.Double),
        sa.Column("resident_bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "kernels",
        sa.Column("kernel_id", sa.String, primary_key=True),
        sa.Column("kernel_name", sa.String, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("pid_created_s", sa.Double, nullable=False),
        sa.Column("pgid", sa.BigInteger),
        sa.Column("connection_file", sa.Text, nullable=False),
        sa.Column("ports", sa.JSON, nullable=False),
        sa.Column("notebook", sa.Text),
        sa.Column("session_id", sa.String),
        sa.Column("session_name", sa.Text),
        sa.Column("session_type", sa.String),
        sa.Column("root_dir", sa.Text, nullable=False),
        sa.Column("owner_pid", sa.BigInteger, nullable=False),
        sa.Column("owner_created_s", sa.Double, nullable=False),
        sa.Column("argv", sa.JSON, nullable=False),
        sa.Column("cwd", sa.Text),
        sa.Column("provisioner_info", sa.JSON, nullable=False),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kernel_id", sa.String),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("made_s", sa.Double, nullable=False),
        sa.Column("ended_s", sa.Double),
    )
    op.create_index("operations_by_kernel", "operations", ["kernel_id", "made_s"])
    op.create_index("operations_by_time", "operations", ["made_s"])
    counters = op.create_table(
        "counters",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(counters, [{"name": "epoch", "value": 0}])
