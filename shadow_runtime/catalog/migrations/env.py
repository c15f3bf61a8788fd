"""How Alembic runs a step: on the connection, and in the transaction, that `upgrade` hands over.

Runs in: API process, executed by Alembic.
"""

from alembic import context

from shadow_runtime.catalog.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
)
with context.begin_transaction():
    context.run_migrations()
