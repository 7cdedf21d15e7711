"""However many rows there are, they are checked a part at a time, and the parts miss nothing that the whole shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from tests.registry.conftest import House, weights
from tests.registry.keeping import Service, running

from expunge.registry import checkpoints, fsck, orphans
from expunge.registry.database import connect
from expunge.registry.fsck import Check, Records, checking, lives, parts
from expunge.registry.fsck.rules import OF_PARTS, RULES
from expunge.registry.record import checking as record_checking
from expunge.registry.record import sealing
from expunge.registry.settings import Settings

MANY = 30_000
LARGEST_ANSWER = max(parts.PAGE * 3, parts.CHANGES, record_checking.PART, orphans.BATCH)
"""Rows that a statement may answer with: three changes of state for each job of a page, or what a page is elsewhere."""


@pytest.fixture
def service(house: House, tmp_path: Path) -> Iterator[Service]:
    yield from running(house, tmp_path)


@pytest.fixture
def forgotten(service: Service) -> Service:
    """Both data sets are forgotten, one after the other."""
    lease = service.lease
    assert lease is not None
    with service.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
    second = service.house.ask(service.owner, service.model, service.sets[1])
    lease = service.house.claim(str(service.house.request(second).job_id))
    with service.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
    return service


def tamper(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(statement))


def whole(engine: Engine) -> Records:
    """All rows at once, as they are read for no large database."""
    with engine.connect() as connection:

        def rows(query: str) -> list[dict[str, Any]]:
            return [dict(row) for row in connection.execute(text(query)).mappings()]

        tables = {
            name: rows(f"SELECT {names} FROM {name}")  # noqa: S608 - our own tables
            for name, names in parts.COLUMNS.items()
        }
        tables["log"].sort(key=lambda row: row["seq"])
        return Records(tables | {"clock": rows("SELECT now() AS now")})


def by_parts(engine: Engine) -> list[str]:
    found = [words for part in parts.parts(engine) for rule in OF_PARTS for words in rule(part)]
    return sorted([*found, *lives.at_once(parts.changes(engine))])


BREAKING = [
    "UPDATE jobs SET state = 'failed'",
    "UPDATE jobs SET attempt = attempt + 1",
    "UPDATE jobs SET result_checkpoint_id = NULL",
    "UPDATE requests SET state = 'failed'",
    "UPDATE requests SET effective_at = NULL",
    "UPDATE requests SET job_id = (SELECT min(id) FROM jobs)",
    "UPDATE checkpoints SET state = 'invalid'",
    "UPDATE checkpoints SET parent_id = (SELECT min(id) FROM checkpoints)",
    "UPDATE checkpoints SET job_id = (SELECT max(job_id) FROM checkpoints)",
    "UPDATE checkpoint_datasets SET forgotten = NOT forgotten",
    "DELETE FROM checkpoint_datasets WHERE dataset_id = (SELECT min(id) FROM datasets)",
    "UPDATE request_datasets SET dataset_id = (SELECT min(id) FROM datasets)",
    "UPDATE models SET head_checkpoint_id = (SELECT min(id) FROM checkpoints)",
    "UPDATE log SET event = 'running', detail = '{\"attempt\": 1, \"worker\": \"w\"}' WHERE event = 'queued'",
    "DELETE FROM log WHERE event = 'running'",
    "DELETE FROM log WHERE event = 'promoted'",
]


def test_a_sound_service_is_sound_in_parts(
    forgotten: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PAGE", "CHECKPOINTS", "CHANGES"):
        monkeypatch.setattr(parts, name, 1)
    assert by_parts(forgotten.engine) == []


@pytest.mark.parametrize("statement", BREAKING)
def test_what_is_broken_is_found_in_the_smallest_parts_as_in_the_whole(
    forgotten: Service, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    for name in ("PAGE", "CHECKPOINTS", "CHANGES"):
        monkeypatch.setattr(parts, name, 1)
    tamper(forgotten.engine, statement)
    records = whole(forgotten.engine)
    found = sorted(words for rule in RULES for words in rule(records))
    assert found, "it breaks something"
    assert by_parts(forgotten.engine) == found


def settings(service: Service) -> Settings:
    return Settings(
        database_url=service.engine.url.render_as_string(hide_password=False),
        object_store=(service.folder / "objects").as_uri(),
    )


JOBS = """
INSERT INTO jobs (id, kind, state, owner_id, params, attempt, priority, outages, seconds_used)
SELECT 'job_many' || n, 'seal', 'succeeded', (SELECT min(id) FROM parties), '{}', 1, 0, 0, 0
FROM generate_series(1, :many) n
"""
LIVES = """
INSERT INTO log (actor, subject_id, event, detail)
SELECT 'service', 'job_many' || n, event, jsonb_strip_nulls(jsonb_build_object('attempt', attempt, 'worker', 'w'))
FROM generate_series(1, :many) n,
    (VALUES (1, 'queued', NULL), (2, 'running', 1), (3, 'succeeded', 1)) life (step, event, attempt)
ORDER BY n, step
"""


def test_many_rows_are_never_in_memory_at_once(service: Service) -> None:
    """Counted where the rows come from the database: no statement answers with more than a part."""
    with service.engine.begin() as connection:
        for statement in (JOBS, LIVES):
            connection.execute(text(statement), {"many": MANY})
    for _ in range(3):
        with service.sessions.begin() as session:
            assert sealing.seal(session, None) == sealing.BATCH
    engine = connect(service.engine.url.render_as_string(hide_password=False))
    answers: list[int] = []

    @event.listens_for(engine, "after_cursor_execute")
    def count(_connection: Any, cursor: Any, *_: Any) -> None:
        answers.append(cursor.rowcount)

    try:
        report = fsck.check(settings(service), engine, service.store)
        assert report.is_consistent, report.findings
        assert (report.jobs, report.log_leaves > 3000) == (MANY + 3, True)
        assert max(answers) <= LARGEST_ANSWER
        assert len(answers) > MANY / parts.PAGE

        tamper(service.engine, "UPDATE jobs SET attempt = 7")
        broken = [
            each.words
            for each in fsck.check(settings(service), engine, service.store).findings
            if each.check == Check.RULES
        ]
        assert len(broken) == checking.TOLD + 1
        assert broken[-1] == f"and {MANY + 3 - checking.TOLD:,} more"
        assert max(answers) <= LARGEST_ANSWER
    finally:
        engine.dispose()
