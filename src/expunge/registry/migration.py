"""Bringing the database to the newest schema, and asking whether it is there."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

SCRIPTS = Path(__file__).parents[1] / "migrations"


def configuration(url: str) -> Config:
    """Alembic's configuration for this package's scripts."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade the schema; safe to call by several processes at once (an advisory lock orders them)."""
    command.upgrade(configuration(url), revision)


def is_current(engine: Engine) -> bool:
    """Whether the database is at the newest revision that this package knows."""
    head = ScriptDirectory.from_config(configuration("")).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
