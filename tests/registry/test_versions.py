"""Versions side by side: the schema says which may run on it, and what only a newer one knows is left to it."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text, update
from sqlalchemy.engine import URL
from tests.conftest import execute, text_of
from tests.registry.conftest import House, expire
from tests.registry.expanding import beyond_adding, statements
from tests.registry.newer import EXPANDING, SILENT, upgraded_with

from expunge.registry import jobs, waiting
from expunge.registry.database import connect, sessions
from expunge.registry.migration import (
    SchemaUnfit,
    configuration,
    fits,
    is_current,
    require_fit,
)
from expunge.registry.tables import Job, JobKind


@pytest.fixture(scope="module")
def engine(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """On a database of the version after this one."""
    upgraded_with(engine, EXPANDING, tmp_path_factory.mktemp("versions"))
    return engine


@pytest.fixture
def migrated(postgres: URL) -> Iterator[Engine]:
    """Another database of this version's schema."""
    execute(postgres, "CREATE DATABASE side_by_side TEMPLATE template_expunge")
    engine = connect(text_of(postgres.set(database="side_by_side")))
    yield engine
    engine.dispose()
    execute(postgres, "DROP DATABASE side_by_side WITH (FORCE)")


def test_a_newer_schema_that_only_adds_fits(engine: Engine) -> None:
    assert (is_current(engine), fits(engine)) == (False, True)


def test_one_that_does_not_say_so_does_not(migrated: Engine, tmp_path: Path) -> None:
    assert fits(migrated)
    upgraded_with(migrated, SILENT, tmp_path)
    assert not fits(migrated)


def test_looking_leaves_no_lines_in_the_log(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Every process looks each second."""
    with caplog.at_level("DEBUG"):
        assert fits(engine)
    assert caplog.records == []


def test_an_older_schema_does_not(migrated: Engine) -> None:
    command.downgrade(configuration(text_of(migrated.url)), "-1")
    assert not fits(migrated)


def test_who_takes_and_announces_jobs_asks_first(migrated: Engine, tmp_path: Path) -> None:
    require_fit(sessions(migrated))
    upgraded_with(migrated, SILENT, tmp_path)
    with pytest.raises(SchemaUnfit):
        require_fit(sessions(migrated))


SCRIPTS = list(ScriptDirectory.from_config(configuration("")).walk_revisions())


def test_no_program_that_cannot_read_which_schemas_are_for_it_is_said_to_fit_this_one() -> None:
    """0010 came before the first program that reads it, and 0008 takes rights away that older ones would give."""
    early = [each for each in SCRIPTS if each.revision <= "0010"]
    assert len(early) == 10
    assert not [each.revision for each in early if getattr(each.module, "expands", False)]


def test_a_migration_that_says_that_it_only_adds_does_nothing_else() -> None:
    assert statements(SCRIPTS[-1].module), "the beginning is read as well"
    for each in SCRIPTS:
        if getattr(each.module, "expands", False):
            assert beyond_adding(each.module) == [], each.revision


@pytest.mark.parametrize(
    "change",
    [
        "op.drop_column('jobs', 'kind')",
        "op.alter_column('jobs', 'kind', new_column_name='sort')",
        "op.alter_column('jobs', 'kind', type_=sa.Integer())",
        "op.add_column('jobs', sa.Column('mood', sa.String(), nullable=False))",
        "op.create_index('ix', 'jobs', ['kind'])",
        "op.create_index('ix', 'jobs', ['kind'], unique=True, postgresql_concurrently=True)",
        "op.drop_index('ix', 'jobs', if_exists=True, postgresql_concurrently=True)",
        "op.create_check_constraint('ck_jobs_mood', 'jobs', \"kind <> 'x'\")",
        "op.drop_constraint('ck_jobs_kind', 'jobs')",
        "op.create_foreign_key('fk', 'jobs', 'models', ['model_id'], ['id'])",
        "op.drop_table('workers')",
        "op.execute('UPDATE jobs SET kind = NULL')",
    ],
)
def test_what_a_migration_does_beyond_adding_is_seen(change: str) -> None:
    assert beyond_adding(script(EXPANDING)) == []
    assert len(beyond_adding(script(f"{EXPANDING}\n    {change}\n"))) == 1


def script(text: str) -> ModuleType:
    module = ModuleType("later")
    exec(text.format(later="9999", newest="0000"), module.__dict__)  # noqa: S102 - written above
    return module


def dream(house: House) -> str:
    """A due job of a kind that this version does not know, as a newer one makes it."""
    job_id = house.seal_job()
    with house.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(kind="dream"))
    return job_id


def state(house: House, job_id: str) -> str:
    with house.sessions() as session:
        query = text("SELECT state FROM jobs WHERE id = :id")
        return str(session.scalar(query, {"id": job_id}))


def test_jobs_of_an_unknown_kind_are_neither_announced_nor_claimed_and_hold_up_nothing(
    house: House,
) -> None:
    unknown, known = dream(house), house.seal_job()
    with house.sessions.begin() as session:
        assert waiting.take_wakeups(session, republish_seconds=60) == [JobKind.SEAL]
        assert waiting.seconds_until_due(session) is None
    lease = waiting.claim_next(house.sessions, list(JobKind), worker="w", lease_seconds=60)
    assert lease is not None
    assert lease.job_id == known
    assert waiting.claim_next(house.sessions, list(JobKind), worker="w", lease_seconds=60) is None
    assert state(house, unknown) == "queued"


def test_a_running_one_is_taken_back_by_a_dispatcher_that_knows_it(house: House) -> None:
    known = house.seal_job()
    unknown = house.seal_job()
    for job_id in (known, unknown):
        house.claim(job_id)
        with house.sessions.begin() as session:
            expire(session, job_id)
    with house.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == unknown).values(kind="dream"))
    with house.sessions.begin() as session:
        taken = [job.id for job in jobs.reclaim_expired(session, max_attempts=3)]
    assert taken == [known]
    assert state(house, unknown) == "running"
