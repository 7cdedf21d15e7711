"""Rows of all tables into files and back, by PostgreSQL's own COPY. Knows no table by its name.

Any PostgreSQL will do, and the same rows fit any release of it: no client programs are needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg import Cursor, sql
from sqlalchemy import Connection, Engine, text

from expunge.formats.digests import CHUNK_BYTES
from expunge.registry.backup.archive import BackupRefused, TableFile, write
from expunge.registry.migration import MIGRATION_LOCK, VERSION_TABLE

PATIENT = (
    "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
    "SET LOCAL idle_in_transaction_session_timeout = 0"
)
NAMES = text(
    "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename <> :version "
    "ORDER BY tablename"
)
COLUMNS = """
SELECT attname FROM pg_attribute
WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
ORDER BY attnum
"""
COUNTERS = text("""
SELECT relname, attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND attidentity <> ''
""")
REFERENCES = text("""
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND conparentid = 0
""")
"""Tables refer to each other in circles: no order of loading them satisfies that."""


@contextmanager
def picture(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as it is now, for as long as it takes; no migration begins meanwhile.

    Raises:
        BackupRefused: a migration is running.
    """
    frozen = engine.connect().execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    )
    with frozen as connection, connection.begin():
        connection.execute(text(PATIENT))
        alone = text("SELECT pg_try_advisory_xact_lock_shared(:lock)")
        if not connection.scalar(alone, {"lock": MIGRATION_LOCK}):
            raise BackupRefused("the database is being migrated; try again afterwards")
        yield connection


def names(connection: Connection) -> list[str]:
    """All tables of the schema but Alembic's own."""
    return list(connection.scalars(NAMES, {"version": VERSION_TABLE}))


def dump(connection: Connection, folder: Path) -> dict[str, TableFile]:
    """Write the rows of every table to a file of its own."""
    return {name: _dump(_cursor(connection), name, folder) for name in names(connection)}


def file_name(table: str) -> str:
    """Of the file with a table's rows."""
    return f"{table}.copy"


def _dump(cursor: Cursor[Any], table: str, folder: Path) -> TableFile:
    columns = [row[0] for row in cursor.execute(COLUMNS, [table])]
    with cursor.copy(_copy(table, columns, "TO STDOUT")) as copy:
        size, sha256 = write(folder / file_name(table), (bytes(each) for each in copy))
    return TableFile(columns=columns, rows=cursor.rowcount, bytes=size, sha256=sha256)


def _copy(table: str, columns: list[str], way: str) -> sql.Composed:
    listed = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL("COPY {} ({}) {}").format(sql.Identifier(table), listed, sql.SQL(way))


def load(connection: Connection, tables: dict[str, TableFile], folder: Path) -> None:
    """Load the rows into the tables of the same schema, which are empty, in the connection's transaction.

    References between tables are checked once all rows are there, and triggers do not fire: what they
    would add is in the rows. Nobody else may migrate or restore meanwhile (see `migration.alone`).

    Raises:
        BackupRefused: the tables are not those of the schema, or not empty, or a file has not as many rows.
    """
    connection.execute(text(PATIENT))
    require_empty(connection)
    if names(connection) != sorted(tables):
        raise BackupRefused("the backup's tables are not those of its schema's revision")
    references = connection.execute(REFERENCES).all()
    for table, name, _ in references:
        connection.execute(text(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"'))
    for table, file in tables.items():
        connection.execute(text(f'ALTER TABLE "{table}" DISABLE TRIGGER USER'))
        _load(_cursor(connection), table, file, folder)
        connection.execute(text(f'ALTER TABLE "{table}" ENABLE TRIGGER USER'))
    for table, name, definition in references:
        connection.execute(text(f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}'))
    for table, column in connection.execute(COUNTERS).all():
        _set_counter(connection, table, column)


def _load(cursor: Cursor[Any], table: str, file: TableFile, folder: Path) -> None:
    with (
        (folder / file_name(table)).open("rb") as source,
        cursor.copy(_copy(table, file.columns, "FROM STDIN")) as copy,
    ):
        while chunk := source.read(CHUNK_BYTES):
            copy.write(chunk)
    if cursor.rowcount != file.rows:
        raise BackupRefused(f"{table}: {cursor.rowcount} rows came of {file.rows}")


def _set_counter(connection: Connection, table: str, column: str) -> None:
    last = connection.scalar(text(f'SELECT max("{column}") FROM "{table}"'))  # noqa: S608 - see COUNTERS
    if last is not None:
        counter = text("SELECT setval(pg_get_serial_sequence(:table, :column), :last)")
        connection.execute(counter, {"table": table, "column": column, "last": last})


def require_empty(connection: Connection) -> None:
    """Raise BackupRefused if a table has a row."""
    if any(
        connection.scalar(text(f'SELECT EXISTS (SELECT FROM "{name}")'))  # noqa: S608 - see NAMES
        for name in names(connection)
    ):
        raise BackupRefused("the database is not empty; create a new one to restore to")


def _cursor(connection: Connection) -> Cursor[Any]:
    driver: Any = connection.connection.driver_connection
    cursor: Cursor[Any] = driver.cursor()
    return cursor
