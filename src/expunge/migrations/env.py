"""Alembic's entry: runs the scripts in one transaction under an advisory lock, its own or that of who calls."""

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from expunge.registry.migration import MIGRATION_LOCK, WITHIN, note_what_fits
from expunge.registry.tables import Table


def run() -> None:
    """Run all pending scripts."""
    given = context.config.attributes.get(WITHIN)
    if given is not None:
        run_on(given)
        return
    url = context.config.get_main_option("sqlalchemy.url")
    engine = create_engine(url or "", poolclass=pool.NullPool)
    with engine.connect() as connection:
        run_on(connection)
    engine.dispose()


def run_on(connection: Connection) -> None:
    """Run them on this connection; where it is in a transaction already, that one goes on."""
    context.configure(
        connection=connection, target_metadata=Table.metadata, transaction_per_migration=False
    )
    with context.begin_transaction():
        connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()
        note_what_fits(connection, context.script)


run()
