"""A restore that breaks off leaves no row, and commands that meet on one folder wait for each other, or say so."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, func, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from tests.conftest import execute, text_of
from tests.registry.conftest import House
from tests.registry.keeping import Service, WatchedStore, database, running

from expunge.registry import backup, operations, parties
from expunge.registry.backup import BackupRefused, archive, endings, tables
from expunge.registry.database import Sessions, sessions
from expunge.registry.migration import configuration, is_current, migrate, revision_of
from expunge.registry.tables import Job, Party


@pytest.fixture(scope="module")
def service(
    session_factory: Sessions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """With one backup."""
    folder = tmp_path_factory.mktemp("breaks")
    with contextmanager(running)(House(session_factory), folder) as service:
        service.backup()
        yield service


@pytest.fixture(scope="module")
def revoked(service: Service) -> str:
    """A key that lives in the backup and was revoked afterwards, as the folder notes."""
    with service.sessions.begin() as session:
        key = parties.issue_key(session, service.owner.id, actor="test", expires_in_days=None).key
    service.backup()
    with service.sessions.begin() as session:
        parties.revoke_key(session, session.get_one(Party, service.owner.id), key.id)
    backup.note(service.sessions, backup.Archive(service.kept))
    return key.id


@pytest.fixture(scope="module")
def older(service: Service) -> str:
    """The name of a backup of an older version, which is not the newest."""
    taken, kept, name = service.backup(), backup.Archive(service.kept), "20200101T000000.000000Z"
    kept.place(taken.name).rename(kept.place(name))
    url, place = text_of(service.engine.url), kept.place(name)
    command.downgrade(configuration(url), "0009")
    with tables.picture(service.engine) as connection:
        dumped = tables.dump(connection, place / archive.TABLES)
    migrate(url)
    manifest = taken.manifest.model_copy(update={"revision": "0009", "tables": dumped})
    (place / archive.MANIFEST).write_text(manifest.model_dump_json())
    return name


@pytest.fixture
def fresh(postgres: URL) -> Iterator[Engine]:
    with database(postgres, "broken_off") as engine:
        yield engine


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "WAIT_SECONDS", 0.0)


def gives_up(_: URL) -> None:
    raise OSError("no space left")


def loses_the_database(address: URL) -> None:
    """As a process that is killed does, or one whose server starts anew."""
    killed = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    execute(address, killed)


@pytest.mark.parametrize(
    "broken",
    [
        ("expunge.registry.jobs.take_back", gives_up),
        ("expunge.registry.backup.endings.again", loses_the_database),
    ],
)
def test_nothing_lives_that_had_ended_wherever_a_restore_breaks_off(
    service: Service,
    revoked: str,
    fresh: Engine,
    tmp_path: Path,
    broken: tuple[str, Callable[[URL], None]],
) -> None:
    step, breaks = broken
    store = WatchedStore(tmp_path / "restored")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step, lambda *_, **__: breaks(fresh.url) or [])
        with pytest.raises((OSError, OperationalError)):
            backup.restore(fresh, store, service.kept)
    with fresh.connect() as connection:
        tables.require_empty(connection)

    found = backup.restore(fresh, store, service.kept, add_to_store=True)
    assert service.lease is not None
    assert found.requeued == [service.lease.job_id]
    with sessions(fresh)() as session:
        assert not parties.is_live(session, revoked)
        assert session.scalar(select(func.count()).where(Job.lease_token.is_not(None))) == 0


def test_of_two_restores_into_one_database_one_is_refused(
    service: Service, fresh: Engine, tmp_path: Path
) -> None:
    def once(name: str) -> str:
        try:
            backup.restore(fresh, WatchedStore(tmp_path / name), service.kept)
        except BackupRefused as error:
            return str(error)
        return "restored"

    with ThreadPoolExecutor(2) as both:
        told = sorted(both.map(once, ("one", "other")))
    assert told == ["restored", "the database is not empty; create a new one to restore to"]
    with fresh.connect() as connection:
        restores = text("SELECT count(*) FROM log WHERE event = 'restored'")
        assert connection.scalar(restores) == 1


def test_rows_of_an_older_version_come_with_their_migration_or_not_at_all(
    service: Service, older: str, fresh: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = WatchedStore(tmp_path / "restored")
    with monkeypatch.context() as patched:
        patched.setattr(endings, "again", lambda *_: gives_up(fresh.url))
        with pytest.raises(OSError, match="no space"):
            backup.restore(fresh, store, service.kept, name=older)
    with fresh.connect() as connection:
        tables.require_empty(connection)
        assert revision_of(connection) == "0009"
    found = backup.restore(fresh, store, service.kept, name=older, add_to_store=True)
    assert is_current(fresh)
    assert service.lease is not None
    assert found.requeued == [service.lease.job_id]


def test_a_restore_of_an_older_version_takes_no_table_from_one_that_was_faster(
    service: Service, older: str, fresh: Engine, tmp_path: Path
) -> None:
    slower = WatchedStore(tmp_path / "slower")

    def faster() -> None:
        backup.restore(fresh, WatchedStore(tmp_path / "faster"), service.kept)

    slower.before[service.key_of(service.sets[0])] = faster
    with pytest.raises(BackupRefused, match="the database is not empty"):
        backup.restore(fresh, slower, service.kept, name=older)
    with sessions(fresh)() as session:
        assert session.scalar(select(func.count()).where(Job.id.is_not(None)))


def test_what_ended_while_objects_came_ends_again(
    service: Service, revoked: str, fresh: Engine, tmp_path: Path
) -> None:
    kept, store = backup.Archive(service.kept), WatchedStore(tmp_path / "restored")
    kept.endings.unlink()

    def note() -> None:
        backup.note(service.sessions, kept)

    store.before[service.key_of(service.sets[0])] = note
    backup.restore(fresh, store, service.kept)
    with sessions(fresh)() as session:
        assert not parties.is_live(session, revoked)


class TestOneFolder:
    def test_two_backups_at_once_are_made_one_after_the_other(self, service: Service) -> None:
        before = backup.Archive(service.kept).names()
        with ThreadPoolExecutor(2) as both:
            made = {taken.name for taken in both.map(lambda _: service.backup(), range(2))}
        assert len(made) == 2
        assert backup.Archive(service.kept).names() == [*before, *sorted(made)]

    @pytest.mark.usefixtures("impatient")
    def test_one_that_goes_on_for_long_refuses_the_next(self, service: Service) -> None:
        with (
            backup.Archive(service.kept).locked(),
            pytest.raises(BackupRefused, match="another backup"),
        ):
            service.backup()

    @pytest.mark.usefixtures("impatient")
    def test_endings_are_noted_while_a_backup_runs(
        self, service: Service, revoked: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXPUNGE_DATABASE_URL", text_of(service.engine.url))
        monkeypatch.setenv("EXPUNGE_OBJECT_STORE", service.folder.as_uri())
        kept = backup.Archive(service.kept)
        kept.endings.unlink(missing_ok=True)
        with kept.locked():
            assert operations.note_endings(service.kept) == 0
        assert revoked in endings.read(kept).keys

    def test_endings_that_are_noted_at_once_are_all_kept(
        self, service: Service, revoked: str
    ) -> None:
        kept = backup.Archive(service.kept)
        earlier = backup.Endings(keys=frozenset({"key_of_another_life"}))
        archive.replace(kept.endings, earlier.model_dump_json().encode())
        with ThreadPoolExecutor(4) as several:
            list(several.map(lambda _: backup.note(service.sessions, kept), range(8)))
        assert endings.read(kept).keys == earlier.keys | {revoked}

    @pytest.mark.usefixtures("impatient")
    def test_no_backup_removes_what_a_restore_is_reading(
        self, service: Service, fresh: Engine, tmp_path: Path
    ) -> None:
        store = WatchedStore(tmp_path / "restored")
        refused: list[str] = []

        def back_up() -> None:
            with pytest.raises(BackupRefused, match="a restore from it") as found:
                service.backup(keep_days=1e-9)
            refused.append(str(found.value))

        store.before[service.key_of(service.sets[0])] = back_up
        # As in a copy of the folder that was made without it.
        (service.kept / archive.LOCK).unlink()
        found = backup.restore(fresh, store, service.kept)
        assert (found.damaged, len(refused)) == ([], 1)
