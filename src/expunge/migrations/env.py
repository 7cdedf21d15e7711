"""Alembic's entry: runs the scripts under an advisory lock, in one transaction or in that of who calls.

A script may end that transaction, to build beside the work what would keep it waiting; another one follows.
"""

from alembic import context
from sqlalchemy import Connection, create_engine, pool

from expunge.registry.migration import WITHIN, alone, note_what_fits
from expunge.registry.tables import Table

LOCK_TIMEOUT = "30s"
"""For a table that somebody works with: whoever comes after waits as well."""
WAIT_SECONDS = 30.0
"""For somebody else who migrates."""


def run() -> None:
    """Run all pending scripts."""
    given = context.config.attributes.get(WITHIN)
    if given is not None:
        run_on(given)
        return
    url = context.config.get_main_option("sqlalchemy.url")
    options = {"options": f"-c lock_timeout={LOCK_TIMEOUT}"}
    engine = create_engine(url or "", poolclass=pool.NullPool, connect_args=options)
    with engine.connect() as connection, alone(connection, WAIT_SECONDS):
        run_on(connection)
    engine.dispose()


def run_on(connection: Connection) -> None:
    """Run them on this connection; where it is in a transaction already, that one goes on."""
    context.configure(
        connection=connection, target_metadata=Table.metadata, transaction_per_migration=False
    )
    with context.begin_transaction():
        context.run_migrations()
        note_what_fits(connection, context.script)


run()
