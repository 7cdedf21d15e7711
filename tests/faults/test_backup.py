"""A service that is lost in the middle of a job is restored from a backup of that moment, and finishes the job."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from tests.faults.rig import Rig, is_live
from tests.faults.users import Cast

from expunge.registry import backup, fsck
from expunge.registry.database import connect, sessions
from expunge.registry.objects import DirectoryStore
from expunge.registry.record import sealing
from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind
from expunge.worker.context import Context
from expunge.worker.running import Runner

SECONDS = 6
"""Of training: longer than a backup takes."""


@pytest.fixture
def empty(rig: Rig) -> Iterator[Engine]:
    """A database without tables on the same server."""

    def administer(statement: str) -> None:
        free = rig.engine.execution_options(isolation_level="AUTOCOMMIT")
        with free.connect() as connection:
            connection.execute(text(statement))

    administer("CREATE DATABASE lost_and_found")
    engine = connect(rig.engine.url.set(database="lost_and_found").render_as_string(False))
    yield engine
    engine.dispose()
    administer("DROP DATABASE lost_and_found WITH (FORCE)")


def test_a_job_that_ran_when_the_backup_was_taken_is_finished_after_the_restore(
    rig: Rig, cast: Cast, weights: Path, empty: Engine, tmp_path: Path
) -> None:
    job_id = cast.removal(weights, seconds=SECONDS).job_id
    rig.until_snapshot(job_id)
    taken = backup.take(rig.engine, rig.store, tmp_path / "backups")
    assert is_live(rig.job(job_id)), "the job went on while the backup was taken"
    assert taken.manifest.missing == []

    store = DirectoryStore(tmp_path / "objects")
    found = backup.restore(empty, store, tmp_path / "backups")
    assert job_id in found.requeued

    settings = Settings(
        database_url=empty.url.render_as_string(hide_password=False),
        object_store=(tmp_path / "objects").as_uri(),
        work_dir=tmp_path / "work",
        retry_seconds=0.1,
        device="cpu",
    )
    within = sessions(empty)
    context = Context(settings, within, store)
    Runner(context, list(JobKind)).work_off()
    context.close()
    with empty.connect() as connection:
        job = connection.execute(
            text("SELECT state, attempt, base_checkpoint_id FROM jobs WHERE id = :id"),
            {"id": job_id},
        ).one()
        told = text("SELECT event FROM log WHERE subject_id = :id ORDER BY seq")
        events = connection.execute(told, {"id": job_id}).scalars().all()
    assert (job.state, job.attempt) == ("succeeded", 2)
    assert "resumed" in events, "it went on from the snapshot of the attempt that was lost"
    with within.begin() as session:
        sealing.seal(session, None)
    report = fsck.check(settings, empty, store, deep=True)
    assert [each for each in report.findings if each.broken] == []
    assert rig.until_ended(job_id)["state"] == "succeeded"
