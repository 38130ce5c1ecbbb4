"""How Alembic runs a step here: on the connection it is given, never on one of its own."""

from alembic import context

from edgepack_fleet.adapters import (
    alert_tables,
    device_tables,
    request_tables,
    rollup_tables,
    worker_tables,
)
from edgepack_fleet.adapters.tables import Base

PARTS = (alert_tables, device_tables, request_tables, rollup_tables, worker_tables)
"""Modules that add their tables to those of `tables`."""

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
