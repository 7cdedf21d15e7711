"""The migrations build exactly the tables that the code declares, there and back, by several processes at once."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from tests.conftest import execute, text_of

from expunge.registry.database import connect
from expunge.registry.migration import LOOK_SECONDS, alone, configuration, is_current, migrate
from expunge.registry.tables import Table

COMPARE_JOB = """
INSERT INTO jobs (id, kind, state, params, attempt, model_id)
    VALUES ('j2', 'compare', 'queued', '{}', 0, 'm');
"""
ROWS = (
    """
INSERT INTO parties (id, name, role) VALUES ('p', 'p', 'model_owner');
INSERT INTO models (id, owner_id, name, encoder, policy) VALUES ('m', 'p', 'm', '{}', '{}');
INSERT INTO jobs (id, kind, state, params, attempt, model_id)
    VALUES ('j1', 'pretrain', 'queued', '{}', 0, 'm');
INSERT INTO checkpoints (id, model_id, state, digest, object_key, bytes, release_digest, release_key)
    VALUES ('c', 'm', 'ready', '', '', 1, '', '');
INSERT INTO idempotency_keys
    VALUES ('p', 'for a request', '', 'req_1'), ('p', 'for a comparison', '', 'cmp_1');
"""
    + COMPARE_JOB
    + """
INSERT INTO comparisons (id, owner_id, model_id, job_id, checkpoint_id, settings)
    VALUES ('cmp_1', 'p', 'm', 'j2', 'c', '{}');
"""
)
"""A model with a comparison, and a job and a key that have nothing to do with it."""


@pytest.fixture
def empty(postgres: URL) -> Iterator[Engine]:
    """An engine on a database without tables."""
    execute(postgres, "CREATE DATABASE unmigrated")
    engine = connect(text_of(postgres.set(database="unmigrated")))
    yield engine
    engine.dispose()
    execute(postgres, "DROP DATABASE unmigrated WITH (FORCE)")


def url_of(engine: Engine) -> str:
    return text_of(engine.url)


def test_the_newest_schema_is_what_the_tables_declare(empty: Engine) -> None:
    migrate(url_of(empty))
    assert is_current(empty)
    with empty.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Table.metadata) == []


def test_down_and_up_again(empty: Engine) -> None:
    migrate(url_of(empty))
    command.downgrade(configuration(url_of(empty)), "base")
    assert not is_current(empty)
    assert inspect(empty).get_table_names() == ["alembic_version"]
    migrate(url_of(empty))
    assert is_current(empty)


def test_going_back_before_comparisons_loses_them_and_nothing_else(empty: Engine) -> None:
    command.upgrade(configuration(url_of(empty)), "0002")
    with empty.begin() as connection:
        connection.exec_driver_sql(ROWS)
    command.downgrade(configuration(url_of(empty)), "0001")
    with empty.connect() as connection:
        kinds = connection.execute(text("SELECT kind FROM jobs")).scalars().all()
        keys = connection.execute(text("SELECT key FROM idempotency_keys")).scalars().all()
    assert (kinds, keys) == (["pretrain"], ["for a request"])
    with empty.begin() as connection, pytest.raises(IntegrityError, match="ck_jobs_kind"):
        connection.exec_driver_sql(COMPARE_JOB)
    migrate(url_of(empty))
    assert is_current(empty)


FORGOTTEN = """
INSERT INTO parties (id, name, role) VALUES ('o', 'o', 'data_owner');
INSERT INTO datasets (id, owner_id, name, state, samples, bytes) VALUES
    ('d', 'o', 'd', 'open', 1, 1), ('e', 'o', 'e', 'open', 1, 1), ('f', 'o', 'f', 'open', 1, 1);
INSERT INTO jobs (id, kind, state, params, attempt, dataset_id)
    VALUES ('j3', 'seal', 'queued', '{}', 0, 'd');
INSERT INTO jobs (id, kind, state, params, attempt, checkpoint_id)
    VALUES ('j4', 'verify', 'queued', '{}', 0, 'c');
INSERT INTO checkpoint_datasets VALUES ('c', 'd', true), ('c', 'e', false);
INSERT INTO requests (id, owner_id, model_id, method, params, state, created_at) VALUES
    ('gone', 'o', 'm', 'x', '{}', 'completed', '2026-01-31 12:00Z'),
    ('held', 'o', 'm', 'x', '{}', 'completed', '2026-01-31 12:00Z'),
    ('new', 'o', 'm', 'x', '{}', 'queued', '2026-01-31 12:00Z');
INSERT INTO request_datasets VALUES ('gone', 'd'), ('held', 'd'), ('held', 'e'), ('new', 'd');
INSERT INTO log (actor, subject_id, event, detail)
    VALUES ('p', 'm', 'promoted', '{"checkpoint_id": "c"}');
"""
"""A head that has forgotten `d` and not `e`; requests about `d`, about both, and one that waits."""


def test_clocks_and_owners_of_what_is_there_are_filled_in(empty: Engine) -> None:
    command.upgrade(configuration(url_of(empty)), "0002")
    with empty.begin() as connection:
        connection.exec_driver_sql(ROWS)
        connection.exec_driver_sql(FORGOTTEN)
    migrate(url_of(empty))
    with empty.connect() as connection:
        owners = dict(connection.execute(text("SELECT id, owner_id FROM jobs")).all())
        clocks = {
            row.id: row
            for row in connection.execute(
                text(
                    "SELECT id, effective_at IS NOT NULL AS effective, "
                    "finished_at IS NOT NULL AS finished, date(deadline_at) AS deadline "
                    "FROM requests"
                )
            )
        }
    assert owners == {"j1": "p", "j2": "p", "j3": "o", "j4": "p"}
    assert {each: clocks[each].effective for each in clocks} == {
        "gone": True,
        "held": False,
        "new": False,
    }
    assert {each: clocks[each].finished for each in clocks} == {
        "gone": True,
        "held": True,
        "new": False,
    }
    assert str(clocks["gone"].deadline) == "2026-02-28", "a calendar month, as the law counts"
    command.downgrade(configuration(url_of(empty)), "base")


DESTROYED = """
INSERT INTO parties (id, name, role) VALUES ('p', 'p', 'model_owner');
INSERT INTO models (id, owner_id, name, encoder, policy) VALUES ('m', 'p', 'm', '{}', '{}');
INSERT INTO checkpoints (id, model_id, state, digest, object_key, bytes, release_digest, release_key)
    VALUES ('c', 'm', 'destroyed', '', '', 1, '', '');
INSERT INTO datasets (id, owner_id, name, state, samples, bytes, digest) VALUES
    ('d', 'p', '', 'deleted', 1, 1, 'sha256:0'), ('e', 'p', '', 'deleting', 1, 1, NULL),
    ('f', 'p', 'f', 'sealed', 1, 1, 'sha256:0');
"""


def test_going_back_before_destruction_leaves_what_is_gone_invalid(empty: Engine) -> None:
    migrate(url_of(empty))
    with empty.begin() as connection:
        connection.exec_driver_sql(DESTROYED)
    command.downgrade(configuration(url_of(empty)), "0005")
    with empty.connect() as connection:
        sets = connection.execute(text("SELECT id, name, state FROM datasets ORDER BY id")).all()
        states = connection.execute(text("SELECT state FROM checkpoints")).scalars().all()
    assert [tuple(each) for each in sets] == [
        ("d", "d", "invalid"),
        ("e", "e", "invalid"),
        ("f", "f", "sealed"),
    ]
    assert states == ["invalid"]
    migrate(url_of(empty))
    assert is_current(empty)


PAPERS = """
INSERT INTO parties (id, name, role) VALUES ('o', 'o', 'data_owner');
INSERT INTO idempotency_keys VALUES
    ('o', 'for a certificate', '', 'crt_1'), ('o', 'for a delegation', '', 'dlg_1'),
    ('o', 'for a data set', '', 'dst_1'), ('o', 'for an encoding', '', 'enc_1');
"""


def test_going_back_before_the_record_forgets_calls_that_made_papers(empty: Engine) -> None:
    migrate(url_of(empty))
    with empty.begin() as connection:
        connection.exec_driver_sql(PAPERS)
    command.downgrade(configuration(url_of(empty)), "0003")
    with empty.connect() as connection:
        keys = connection.execute(text("SELECT key FROM idempotency_keys")).scalars().all()
    assert keys == ["for a data set"]


def test_an_empty_database_is_not_current(empty: Engine) -> None:
    assert not is_current(empty)


def test_migrating_twice_changes_nothing(empty: Engine) -> None:
    migrate(url_of(empty))
    migrate(url_of(empty))
    assert is_current(empty)


def test_several_processes_may_migrate_at_once(empty: Engine) -> None:
    environment = os.environ | {
        "EXPUNGE_DATABASE_URL": url_of(empty),
        "EXPUNGE_OBJECT_STORE": "file:///unused",
    }
    command = [sys.executable, "-m", "expunge.cli", "migrate"]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert is_current(empty)


def test_going_back_before_scopes_ends_the_keys_that_were_held_to_some(empty: Engine) -> None:
    migrate(url_of(empty))
    with empty.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO parties (id, name, role) VALUES ('p', 'p', 'data_owner');"
            "INSERT INTO api_keys (id, party_id, secret_sha256, scopes)"
            " VALUES ('key_1', 'p', '1', NULL), ('key_2', 'p', '2', '{read}')"
        )
    command.downgrade(configuration(url_of(empty)), "0007")
    with empty.connect() as connection:
        live = connection.execute(text("SELECT id FROM api_keys WHERE revoked_at IS NULL"))
        assert live.scalars().all() == ["key_1"]


BUILT_BESIDE = "0010"
"""The newest revision before one that builds indexes of what may be big tables."""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'unmigrated'"
BROKEN = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"


def test_nobody_waits_while_indexes_are_built_and_the_migration_waits_for_what_is_open(
    empty: Engine,
) -> None:
    command.upgrade(configuration(url_of(empty)), BUILT_BESIDE)
    with (
        ThreadPoolExecutor(1) as beside,
        empty.connect() as open_one,
        empty.connect().execution_options(isolation_level="AUTOCOMMIT") as other,
    ):
        open_one.exec_driver_sql("UPDATE encodings SET views_key = NULL")
        migrated = beside.submit(migrate, url_of(empty))
        while not other.scalar(text(WAITING)):
            assert not migrated.done()
        other.exec_driver_sql("SET lock_timeout = '1s'")
        for table in ("jobs", "encodings", "audits"):
            other.execute(Table.metadata.tables[table].delete())
        open_one.rollback()
        migrated.result(10)
    assert is_current(empty)


def test_a_migration_that_broke_off_while_it_built_indexes_is_done_again(empty: Engine) -> None:
    command.upgrade(configuration(url_of(empty)), BUILT_BESIDE)
    with empty.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX ix_jobs_snapshot_key ON jobs (snapshot_key)")
        connection.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false"
            " WHERE indexrelid = 'ix_jobs_snapshot_key'::regclass"
        )
    migrate(url_of(empty))
    with empty.connect() as connection:
        assert connection.scalar(text(BROKEN)) == 0
    assert is_current(empty)


def test_who_waits_for_a_migration_is_told_so_and_has_no_transaction_open(empty: Engine) -> None:
    with empty.connect() as one, empty.connect() as other:
        with alone(one, 0):
            with pytest.raises(TimeoutError, match="try again"), alone(other, LOOK_SECONDS):
                pass
            assert not other.in_transaction()
        with alone(other, 0):
            pass
