"""Alembic's entry: connects and runs the scripts in one transaction under an advisory lock."""

from alembic import context
from sqlalchemy import create_engine, pool, text

from expunge.registry.migration import MIGRATION_LOCK, note_what_fits
from expunge.registry.tables import Table


def run() -> None:
    """Run all pending scripts."""
    url = context.config.get_main_option("sqlalchemy.url")
    engine = create_engine(url or "", poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=Table.metadata, transaction_per_migration=False
        )
        with context.begin_transaction():
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            context.run_migrations()
            note_what_fits(connection, context.script)
    engine.dispose()


run()
