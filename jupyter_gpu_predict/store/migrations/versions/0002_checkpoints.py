"""Kernels that the driver may be holding, and how quick each host was seen to be."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    for table, key in (("checkpoints", "kernel_id"), ("bandwidths", "host")):
        op.create_table(
            table,
            sa.Column(key, sa.String, primary_key=True),
            sa.Column("data", sa.JSON, nullable=False),
        )
