"""Run by Alembic: migrations on the connection that `upgrade` hands over, in its transaction."""

from alembic import context

from rlhf_lab.database import TABLES

context.configure(connection=context.config.attributes["connection"], target_metadata=TABLES)
with context.begin_transaction():
    context.run_migrations()
