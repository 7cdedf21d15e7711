"""Bringing the database to the newest schema, and asking whether this program can run on the one that is there.

A process may meet a schema newer than itself while others are upgraded. Which programs can run on a
schema, the schema says itself: with every migration the oldest revision whose program still can is
written beside the revision (see `oldest_that_fits`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from expunge.registry.database import Sessions

SCRIPTS = Path(__file__).parents[1] / "migrations"
MIGRATION_LOCK = 0x657870756E6765
"""Advisory lock of who migrates: the letters of `expunge`."""
VERSION_TABLE = "alembic_version"
"""Alembic's own table; its comment is the oldest revision whose program fits."""
LOOK_SECONDS = 0.1
"""Between two looks whether the lock is free."""
WITHIN = "connection"
"""Attribute of Alembic's configuration: the connection in whose transaction to migrate."""


class SchemaUnfit(Exception):
    """The schema is older than this program, or newer and not for it."""


def configuration(url: str) -> Config:
    """Alembic's configuration for this package's scripts."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the schema; safe to call by several processes at once (an advisory lock orders them).

    Raises:
        TimeoutError: somebody else holds the lock for long.
    """
    command.upgrade(configuration(url), revision)


def migrate_within(connection: Connection, revision: str = "head") -> None:
    """Upgrade the schema in the connection's transaction, with all else that it does or not at all; `alone` holds."""
    command.upgrade(_within(connection), revision)


def remove_within(connection: Connection) -> None:
    """Remove all tables, in the connection's transaction; `alone` holds."""
    command.downgrade(_within(connection), "base")


def _within(connection: Connection) -> Config:
    config = configuration(connection.engine.url.render_as_string(hide_password=False))
    config.attributes[WITHIN] = connection
    return config


@contextmanager
def alone(connection: Connection, wait_seconds: float) -> Iterator[None]:
    """Keep others from migrating, restoring and backing up, over as many of the connection's transactions as it takes.

    The connection is in none now. Who waits only looks now and then: an index that is built beside the
    work waits for all transactions that are open, so one that waited for the lock would never get it.

    Raises:
        TimeoutError: somebody else went on for `wait_seconds`.
    """
    until = time.monotonic() + wait_seconds
    while not _scalar(connection, f"SELECT pg_try_advisory_lock({MIGRATION_LOCK})"):
        if time.monotonic() >= until:
            raise TimeoutError(
                "the database is being migrated, restored or backed up by somebody else; try again afterwards"
            )
        time.sleep(LOOK_SECONDS)
    try:
        yield
    finally:
        # The lock of a connection that broke went with it.
        if not connection.invalidated:
            _scalar(connection, f"SELECT pg_advisory_unlock({MIGRATION_LOCK})")


def _scalar(connection: Connection, query: str) -> object:
    with connection.begin():
        return connection.scalar(text(query))


def revision_of(connection: Connection) -> str | None:
    """The revision of the database's schema; None for an empty database.

    Read without Alembic, which writes lines to the log whenever it looks: every process does each second.
    """
    if connection.scalar(text(f"SELECT to_regclass('{VERSION_TABLE}')")) is None:
        return None
    found = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - its name
    return None if found is None else str(found)


def is_current(engine: Engine) -> bool:
    """Whether the database is at the newest revision that this package knows."""
    with engine.connect() as connection:
        return revision_of(connection) == newest()


@cache
def newest() -> str | None:
    """The newest revision that this package knows."""
    return _scripts().get_current_head()


def is_known(revision: str) -> bool:
    """Whether this package has the revision's script."""
    return revision in _known()


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in _scripts().walk_revisions())


def fits(engine: Engine) -> bool:
    """Whether this program can run on the database's schema: it is the newest known, or a newer one that says so."""
    with engine.connect() as connection:
        return _fits(connection)


def require_fit(within: Sessions) -> None:
    """Raise SchemaUnfit unless this program can run on the database's schema (see `fits`)."""
    with within() as session:
        if not _fits(session.connection()):
            raise SchemaUnfit("this program cannot run on the database's schema")


def _fits(connection: Connection) -> bool:
    revision = revision_of(connection)
    if revision is None or is_known(revision):
        return revision == newest()
    oldest = connection.scalar(
        text(f"SELECT obj_description('{VERSION_TABLE}'::regclass, 'pg_class')")
    )
    return oldest is not None and is_known(oldest)


def oldest_that_fits(scripts: ScriptDirectory, revision: str) -> str:
    """The oldest revision whose program can run on the schema of this one.

    A script with `expands = True` only adds what the program before it need not know: that program
    goes on running. Any other script ends all programs before its own.
    """
    script = scripts.get_revision(revision)
    while getattr(script.module, "expands", False) and isinstance(script.down_revision, str):
        script = scripts.get_revision(script.down_revision)
    return script.revision


def note_what_fits(connection: Connection, scripts: ScriptDirectory) -> None:
    """Write beside the schema's revision which programs can run on it, in the transaction that migrates."""
    revision = revision_of(connection)
    if revision is not None:
        oldest = oldest_that_fits(scripts, revision)
        connection.execute(text(f"COMMENT ON TABLE {VERSION_TABLE} IS '{oldest}'"))


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(configuration(""))
