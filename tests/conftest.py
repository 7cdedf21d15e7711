"""Real servers for every test that needs them: one PostgreSQL a session, a fresh database a module."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url

from expunge.embedded.postgres import start_postgres
from expunge.registry.database import Sessions, connect, sessions
from expunge.registry.migration import migrate
from expunge.registry.objects import DirectoryStore

# Several tests run at once: training that gave way to all the others would never end.
os.environ["EXPUNGE_TRAINING_NICENESS"] = "0"


def execute(server: URL, statement: str) -> None:
    """Run one statement on the server's own database."""
    with psycopg.connect(
        host=str(server.query["host"]),
        user=server.username,
        dbname=server.database,
        autocommit=True,
    ) as connection:
        connection.execute(statement.encode())


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A running PostgreSQL whose database `template_expunge` holds the newest schema."""
    # Not below pytest's own folder: a second pytest of the same user closes that to all others,
    # and the server of a root user runs as somebody else.
    with (
        tempfile.TemporaryDirectory(prefix="expunge-tests-") as folder,
        start_postgres(Path(folder), durable=False) as address,
    ):
        server = make_url(address)
        execute(server, "CREATE DATABASE template_expunge")
        migrate(text_of(server.set(database="template_expunge")))
        yield server


def text_of(url: URL) -> str:
    """The URL as settings take it."""
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def database_url(postgres: URL, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of this module's own, with the newest schema and no rows."""
    name = "t_" + request.module.__name__.replace(".", "_").lower()[-50:]
    execute(postgres, f'CREATE DATABASE "{name}" TEMPLATE template_expunge')
    yield text_of(postgres.set(database=name))
    execute(postgres, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on the module's database."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def session_factory(engine: Engine) -> Sessions:
    """Sessions on the module's database."""
    return sessions(engine)


@pytest.fixture
def directory_store(tmp_path: Path) -> DirectoryStore:
    """An empty object store."""
    return DirectoryStore(tmp_path / "objects")
