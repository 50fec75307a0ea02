"""Run by alembic with the connection that `store.migrate` hands over."""

from __future__ import annotations

from alembic import context

from jupyter_gpu_predict.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
