"""A backup holds the rows of one moment and their objects; a restore brings them back, and nothing that has ended."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, select, text
from sqlalchemy.engine import URL
from tests.conftest import text_of
from tests.registry.conftest import House
from tests.registry.keeping import Service, database, running
from tests.registry.s3 import BUCKET, settings_of, working_server

from expunge.registry import (
    backup,
    checkpoints,
    datasets,
    destruction,
    jobs,
    orphans,
    parties,
    residue,
)
from expunge.registry.backup import BackupRefused, Restored, archive
from expunge.registry.checkpoints import StoredWeights
from expunge.registry.database import Sessions, sessions
from expunge.registry.migration import configuration
from expunge.registry.objects import DirectoryStore, ObjectStore, S3Store
from expunge.registry.record import sealing
from expunge.registry.tables import Dataset, Grant, Job, Request, Table, TreeHead
from expunge.registry.transitions import LeaseLost

FENCED = {"jobs", "requests", "log", "log_unsealed", "pending_objects"}
"""Tables that a restore writes to."""


@pytest.fixture
def service(house: House, tmp_path: Path) -> Iterator[Service]:
    yield from running(house, tmp_path)


@pytest.fixture
def fresh(postgres: URL) -> Iterator[Engine]:
    with database(postgres, "restored") as engine:
        yield engine


@pytest.fixture
def other_store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "restored")


def rows(engine: Engine, table: str) -> list[Any]:
    with engine.connect() as connection:
        query = f'SELECT to_jsonb(t) FROM "{table}" t'  # noqa: S608 - names of our own tables
        return sorted(connection.execute(text(query)).scalars(), key=str)


def restored(service: Service, engine: Engine, store: ObjectStore, **options: Any) -> Restored:
    return backup.restore(engine, store, service.kept, **options)


@dataclass(frozen=True)
class BroughtBack:
    """A service that was backed up and restored, and what its tables held before."""

    before: dict[str, list[Any]]
    keys: set[str]
    lease: jobs.Lease
    taken: backup.Taken
    found: Restored
    engine: Engine
    store: DirectoryStore

    @property
    def sessions(self) -> Sessions:
        return sessions(self.engine)


@pytest.fixture(scope="module")
def brought_back(
    session_factory: Sessions, postgres: URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BroughtBack]:
    folder = tmp_path_factory.mktemp("brought-back")
    with contextmanager(running)(House(session_factory), folder) as service:
        before = {name: rows(service.engine, name) for name in Table.metadata.tables}
        taken, keys, lease = service.backup(), set(service.store.keys()), service.lease
    assert lease is not None
    store = DirectoryStore(folder / "restored")
    with database(postgres, "brought_back") as engine:
        found = restored(service, engine, store, manifest_sha256=taken.manifest_sha256)
        yield BroughtBack(before, keys, lease, taken, found, engine, store)


class TestBroughtBack:
    def test_rows_and_objects_are_those_of_the_backup(self, brought_back: BroughtBack) -> None:
        same = brought_back.before.keys() - FENCED
        assert {name: rows(brought_back.engine, name) for name in same} == {
            name: brought_back.before[name] for name in same
        }
        assert set(brought_back.store.keys()) == brought_back.keys
        found, taken = brought_back.found, brought_back.taken
        assert (found.name, found.put, found.held) == (taken.name, taken.manifest.objects.count, {})

    def test_the_log_goes_on_where_the_backup_ended_and_tells_of_it(
        self, brought_back: BroughtBack
    ) -> None:
        log = rows(brought_back.engine, "log")
        assert [row for row in brought_back.before["log"] if row not in log] == []
        assert [row["event"] for row in log if row["subject_id"] == "backup"] == ["restored"]
        with brought_back.sessions() as session:
            size = session.scalars(select(TreeHead.size)).one()
        with brought_back.sessions.begin() as session:
            assert sealing.seal(session, None) > 0
        with brought_back.sessions() as session:
            assert max(session.scalars(select(TreeHead.size))) > size

    def test_a_running_attempt_has_lost_its_lease_and_its_job_waits_with_its_snapshot(
        self, brought_back: BroughtBack
    ) -> None:
        lease = brought_back.lease
        assert brought_back.found.requeued == [lease.job_id]
        with brought_back.sessions() as session:
            job = session.get_one(Job, lease.job_id)
            assert (job.state, job.snapshot_step, job.attempt) == ("queued", 5, 1)
            assert job.seconds_used == 0, "the time between backup and restore is nobody's"
            assert {each.state for each in job.requests} == {"queued"}
            assert not session.scalars(select(Job.id).where(Job.published_at.is_not(None))).all()
        with pytest.raises(LeaseLost), brought_back.sessions.begin() as session:
            jobs.heartbeat(session, lease, lease_seconds=60)
        with pytest.raises(LeaseLost), brought_back.sessions.begin() as session:
            checkpoints.record_unlearned(
                session, lease, StoredWeights("x", "x", 1, "x", "x"), {"seconds": 1.0}
            )


class TestRestoring:
    def test_of_several_the_newest_or_the_one_that_is_named(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        first = service.backup()
        service.sealed()
        service.backup()
        restored(service, fresh, other_store, name=first.name)
        assert len(rows(fresh, "datasets")) == 2

    def test_what_the_store_still_has_is_not_put_again_and_what_it_lost_is(
        self, service: Service, fresh: Engine
    ) -> None:
        service.backup()
        lost, damaged = (service.key_of(each) for each in service.sets)
        service.store.delete(lost)
        (service.folder / "objects" / damaged).write_bytes(b"rot")
        newer = service.sealed()
        found = restored(service, fresh, service.store, add_to_store=True)
        assert found.put == 2
        assert list(orphans.check(sessions(fresh), service.store, deep=True)) == []
        assert service.key_of(newer) in set(service.store.keys())

    def test_lost_objects_come_back_without_touching_a_row(self, service: Service) -> None:
        service.backup()
        before = rows(service.engine, "datasets")
        service.store.delete(service.key_of(service.sets[0]))
        assert backup.mend(service.engine, service.store, service.kept) == backup.Mended(1, [])
        assert list(orphans.check(service.sessions, service.store)) == []
        assert rows(service.engine, "datasets") == before

    def test_what_rotted_in_the_folder_alone_is_no_loss_and_the_rest_comes_back_without_it(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        service.backup()
        kept = backup.Archive(service.kept)
        rotten, lost = (service.key_of(each) for each in service.sets)
        kept.path(rotten).write_bytes(b"rot")
        service.store.delete(lost)
        assert backup.mend(service.engine, service.store, service.kept) == backup.Mended(1, [])
        with pytest.raises(BackupRefused, match=f"{rotten} .* --without-damaged"):
            restored(service, fresh, other_store)
        service.store.delete(lost)
        service.store.delete(rotten)
        found = backup.mend(service.engine, service.store, service.kept)
        assert found == backup.Mended(1, [rotten])
        came = restored(service, fresh, other_store, add_to_store=True, without_damaged=True)
        assert came.damaged == [rotten]
        assert set(other_store.keys()) == set(service.store.keys())
        broken = list(orphans.check(sessions(fresh), other_store, deep=True))
        assert [(each.key, each.problem) for each in broken] == [(rotten, "missing")]


class TestRefusals:
    def test_a_database_or_store_that_is_in_use(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        service.backup()
        with pytest.raises(BackupRefused, match="database is not empty"):
            restored(service, service.engine, other_store)
        with pytest.raises(BackupRefused, match="store is not empty"):
            restored(service, fresh, service.store)
        assert rows(fresh, "parties") == []

    def test_a_backup_that_was_damaged_or_is_of_a_newer_schema(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        taken = service.backup()
        place = service.kept / "backups" / taken.name
        for file in (
            place / "tables" / "parties.copy",
            place / "objects.txt",
            service.kept / "objects" / service.key_of(service.sets[0]),
            place / "manifest.json",
        ):
            sound = file.read_bytes()
            file.write_bytes(sound + b" ")
            with pytest.raises(BackupRefused):
                restored(service, fresh, other_store, manifest_sha256=taken.manifest_sha256)
            file.write_bytes(sound)
            for key in list(other_store.keys()):
                other_store.delete(key)
        newer = taken.manifest.model_copy(update={"revision": "9999"})
        (place / "manifest.json").write_text(newer.model_dump_json())
        with pytest.raises(BackupRefused, match="9999"):
            restored(service, fresh, other_store)
        assert rows(fresh, "parties") == []

    def test_a_schema_that_is_not_this_programs(self, service: Service, fresh: Engine) -> None:
        command.downgrade(configuration(text_of(fresh.url)), "0003")
        with pytest.raises(BackupRefused, match="at revision 0003"):
            backup.take(fresh, service.store, service.kept)

    def test_there_is_none(
        self, fresh: Engine, other_store: DirectoryStore, tmp_path: Path
    ) -> None:
        with pytest.raises(BackupRefused, match="no complete backup"):
            backup.restore(fresh, other_store, tmp_path / "empty")


class TestTaking:
    def test_the_next_one_copies_only_what_is_new(self, service: Service) -> None:
        first = service.backup()
        new = service.sealed()
        second = service.backup()
        assert (first.copied, second.copied) == (first.manifest.objects.count, 1)
        assert service.key_of(new) in set(backup.Archive(service.kept).keys(second.name))

    def test_those_whose_time_is_over_go_with_their_objects(self, service: Service) -> None:
        gone = service.sealed(granted=False)
        key = service.key_of(gone)
        first = service.backup()
        service.delete(gone)
        second = service.backup(keep_days=30)
        kept = backup.Archive(service.kept)
        assert (second.outdated, kept.path(key).exists()) == ([], True)
        third = service.backup(keep_days=1e-9)
        assert third.outdated == [first.name, second.name]
        assert kept.names() == [third.name]
        assert not kept.path(key).exists()

    def test_what_ends_while_it_is_copied_is_not_in_it(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        """Made after the first look, and gone after the picture that named it."""
        made: list[str] = []

        def make() -> None:
            made.append(service.sealed(granted=False))
            service.store.before[service.key_of(made[0])] = lambda: service.delete(made[0])

        service.store.before[service.key_of(service.sets[0])] = make
        taken = service.backup()
        assert made
        assert taken.manifest.missing == []
        restored(service, fresh, other_store)
        with sessions(fresh)() as session:
            assert session.get_one(Dataset, made[0]).state == "deleted"

    def test_what_the_store_has_lost_is_told_and_the_rest_is_kept(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        lost, damaged = (service.key_of(each) for each in service.sets)
        service.store.delete(lost)
        (service.folder / "objects" / damaged).write_bytes(b"rot")
        taken = service.backup()
        missing = {each.key: each.problem for each in taken.manifest.missing}
        assert missing == {lost: "missing", damaged: "damaged"}
        found = restored(service, fresh, other_store)
        assert found.put == taken.manifest.objects.count

    def test_an_object_of_the_folder_that_rots_is_found_and_copied_again(
        self, service: Service
    ) -> None:
        service.backup()
        path = backup.Archive(service.kept).path(service.key_of(service.sets[0]))
        path.write_bytes(b"rot")
        assert service.backup().copied == 0
        assert service.backup(deep=True).copied == 1
        assert path.read_bytes() != b"rot"

    def test_a_damaged_object_that_only_older_backups_have_stays_and_is_told(
        self, service: Service
    ) -> None:
        """Its disk may read it better the next time; nothing else has it."""
        gone = service.sealed(granted=False)
        key = service.key_of(gone)
        first = service.backup()
        service.delete(gone)
        path = backup.Archive(service.kept).path(key)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        second = service.backup(deep=True)
        assert (second.damaged, second.manifest.missing) == ({key: [first.name]}, [])
        assert path.read_bytes() == whole[:-1]
        path.write_bytes(whole)
        assert service.backup(deep=True).damaged == {}

    def test_a_damaged_object_that_the_store_has_lost_as_well_is_no_part_of_the_next_one(
        self, service: Service
    ) -> None:
        first = service.backup()
        lost, rotten = (service.key_of(each) for each in service.sets)
        kept = backup.Archive(service.kept)
        service.store.delete(lost)
        (service.folder / "objects" / rotten).write_bytes(b"rot")
        for key in (lost, rotten):
            kept.path(key).write_bytes(b"rot here as well")
        second = service.backup(deep=True)
        assert second.damaged == {lost: [first.name], rotten: [first.name]}
        assert {each.key: each.problem for each in second.manifest.missing} == {
            lost: "damaged",
            rotten: "damaged",
        }
        assert not {lost, rotten} & set(kept.keys(second.name))
        assert kept.path(lost).read_bytes() == b"rot here as well"

    def test_what_cannot_be_read_or_is_gone_is_mended_like_what_is_damaged(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        service.backup()
        kept = backup.Archive(service.kept)
        unreadable, gone = (kept.path(service.key_of(each)) for each in service.sets)
        read = archive.sha256_file

        def bad_sector(path: Path) -> str:
            if path == unreadable:
                raise OSError(errno.EIO, "Input/output error")
            return read(path)

        monkeypatch.setattr(archive, "sha256_file", bad_sector)
        gone.unlink()
        second = service.backup(deep=True)
        assert (second.copied, second.damaged) == (2, {})
        assert gone.exists()

    def test_what_broke_off_is_no_backup(self, service: Service) -> None:
        kept = backup.Archive(service.kept)
        service.backup()
        left = kept.folder / "backups" / f"{archive.UNFINISHED}1"
        left.mkdir()
        assert len(kept.names()) == 1
        service.backup()
        assert not left.exists()
        assert service.kept.stat().st_mode & 0o077 == 0, "it is for the operator's account only"

    def test_owners_are_told_how_long_backups_may_hold_their_data(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        def conditions(within: Sessions) -> list[str]:
            with within() as session:
                found = residue.of(session, session.scalars(select(Request)).one())
            return [str(each.condition) for each in found if each.what == "backup"]

        assert conditions(service.sessions) == []
        service.backup()
        assert "no time is set" in conditions(service.sessions)[0]
        service.backup(keep_days=30)
        (condition,) = conditions(service.sessions)
        assert "30 days old" in condition
        # Also where the row that says so came after the picture.
        restored(service, fresh, other_store, keep_days=7)
        (condition,) = conditions(sessions(fresh))
        assert "7 days old" in condition


class TestEndings:
    def test_what_has_ended_since_ends_again(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        unused, regranted = service.sealed(), service.sealed()
        with service.sessions.begin() as session:
            revoked, rotated, kept_on = (
                parties.issue_key(session, service.owner.id, actor="test", expires_in_days=1).key
                for _ in range(3)
            )
            anew = service.sealed()
            datasets.withdraw_grant(session, service.owner, anew, service.model_owner.id)
        with service.sessions.begin() as session:
            datasets.grant(session, service.owner, anew, service.model_owner.id)
        service.backup()
        with service.sessions.begin() as session:
            parties.revoke_key(session, service.owner, revoked.id)
            parties.rotate_key(session, rotated, rotated.id, overlap=timedelta())
            for each in (*service.sets, regranted):
                datasets.withdraw_grant(session, service.owner, each, service.model_owner.id)
        with service.sessions.begin() as session:
            datasets.grant(session, service.owner, regranted, service.model_owner.id)
        service.delete(unused)
        kept = backup.Archive(service.kept)
        backup.note(service.sessions, kept)
        found = restored(service, fresh, other_store)
        assert found.held == {}
        within = sessions(fresh)
        with within() as session:
            assert [parties.is_live(session, each.id) for each in (revoked, rotated, kept_on)] == [
                False,
                False,
                True,
            ]
            assert session.get_one(Dataset, unused).state == "deleting"
            assert session.scalars(select(Grant.dataset_id)).all() == [anew]
        gone = service.put("another") and set(other_store.keys())
        assert destruction.finish_all(within, other_store).ended == [unused]
        assert len(set(other_store.keys())) == len(gone) - 1

    def test_what_is_needed_again_is_told_and_left_to_its_owner(
        self, service: Service, fresh: Engine, other_store: DirectoryStore
    ) -> None:
        """The backup's head holds the data that a later one had forgotten."""
        service.backup()
        kept = backup.Archive(service.kept)
        ended = backup.Endings(datasets=frozenset(service.sets[1:]))
        kept.endings.write_text(ended.model_dump_json())
        found = restored(service, fresh, other_store)
        assert list(found.held) == service.sets[1:]
        assert service.model in found.held[service.sets[1]]


def test_a_bucket_is_backed_up_and_restored_as_a_directory_is(
    service: Service, fresh: Engine
) -> None:
    with working_server() as endpoint:
        bucket = S3Store(settings_of(f"s3://{BUCKET}", endpoint), BUCKET)
        service.backup()
        backup.restore(fresh, bucket, service.kept)
        assert set(bucket.keys()) == set(service.store.keys())
        again = backup.take(fresh, bucket, service.folder / "of the bucket")
        assert again.copied == again.manifest.objects.count
        assert again.manifest.missing == []
