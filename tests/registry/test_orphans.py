"""Objects that nothing names are removed, and only those."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session
from tests.registry.archive import GRACE_SECONDS, Archive, emptied, logged, new, newest_log
from tests.registry.s3 import BUCKET, client_of, settings_of, working_server

from expunge.registry import orphans, references
from expunge.registry.database import Sessions
from expunge.registry.objects import DirectoryStore, StoreUnavailable, open_store, read_bytes
from expunge.registry.tables import (
    Audit,
    Checkpoint,
    Comparison,
    Encoding,
    Job,
    Model,
    Request,
    Shard,
    Table,
)
from expunge.registry.transitions import LeaseLost


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of a running S3 server with one bucket."""
    with working_server() as address:
        yield address


@pytest.fixture
def empty_tables(session_factory: Sessions) -> Sessions:
    """No row names anything."""
    return emptied(session_factory)


@pytest.fixture
def archive(empty_tables: Sessions, directory_store: DirectoryStore, tmp_path: Path) -> Archive:
    """An empty one, in a directory."""
    return Archive(empty_tables, directory_store, tmp_path)


@pytest.fixture
def s3_archive(empty_tables: Sessions, endpoint: str, tmp_path: Path) -> Archive:
    """An empty one, behind S3."""
    client = client_of(endpoint)
    for found in client.list_objects(bucket_name=BUCKET, recursive=True):
        client.remove_object(bucket_name=BUCKET, object_name=found.object_name)
    return Archive(empty_tables, open_store(settings_of(f"s3://{BUCKET}", endpoint)), tmp_path)


@pytest.fixture(params=["directory", "s3"])
def any_archive(request: pytest.FixtureRequest) -> Archive:
    """An empty one of either kind."""
    name = "archive" if request.param == "directory" else "s3_archive"
    archive: Archive = request.getfixturevalue(name)
    return archive


class TestSweep:
    """What goes and what stays."""

    def test_an_object_that_a_row_names_stays(self, any_archive: Archive) -> None:
        key = any_archive.put(b"shard")
        any_archive.name(key, any_archive.dataset())
        any_archive.let_pass(10 * GRACE_SECONDS)
        assert any_archive.sweep(0) == orphans.Swept([], 1)
        assert any_archive.keys() == [key]
        assert any_archive.notes() == {}

    def test_an_object_whose_writer_crashed_before_it_was_recorded_goes_after_the_grace_period(
        self, any_archive: Archive
    ) -> None:
        key = any_archive.put(b"crash")
        assert any_archive.sweep() == orphans.Swept([], 1)
        any_archive.let_pass(GRACE_SECONDS + 1)
        assert any_archive.sweep() == orphans.Swept([key], 0)
        assert any_archive.keys() == []
        assert any_archive.sweep() == orphans.Swept([], 0)

    def test_a_replaced_shard_goes_after_a_grace_period_of_its_own(self, archive: Archive) -> None:
        """A reader may have read the row just before."""
        dataset = archive.dataset()
        old, current = archive.put(b"old"), archive.put(b"new")
        archive.name(old, dataset)
        archive.name(current, dataset)
        assert archive.sweep().removed == []
        archive.let_pass(GRACE_SECONDS + 1)
        assert archive.sweep().removed == [old]
        assert archive.keys() == [current]
        assert archive.check(deep=True) == []

    def test_without_a_grace_period_all_that_is_unnamed_goes_at_once(
        self, archive: Archive
    ) -> None:
        keys = sorted([archive.put(b"noted"), archive.stray(b"stray")])
        assert archive.sweep(0).removed == keys

    def test_an_attempt_s_object_stays_as_long_as_its_lease(self, archive: Archive) -> None:
        lease = archive.lease()
        key = archive.put(b"result", lease=lease)
        archive.let_pass(1_000 * GRACE_SECONDS)
        assert archive.sweep().removed == []
        archive.lose(lease)
        assert archive.sweep(1_000 * GRACE_SECONDS).removed == [key]

    def test_a_snapshot_stays_until_its_job_ends(self, archive: Archive) -> None:
        lease = archive.lease()
        key = archive.put(b"state", lease=lease, under=f"snapshots/{lease.job_id}/{lease.token}")
        assert key.startswith(f"snapshots/{lease.job_id}/{lease.token}/")
        with archive.sessions.begin() as session:
            session.get_one(Job, lease.job_id).snapshot_key = key
        archive.lose(lease)
        assert archive.sweep(0).removed == []
        with archive.sessions.begin() as session:
            session.get_one(Job, lease.job_id).state = "failed"
        assert archive.sweep(0).removed == [key]

    def test_what_is_not_expunge_s_is_left_alone(self, s3_archive: Archive, endpoint: str) -> None:
        client_of(endpoint).fput_object(BUCKET, "notes/readme.txt", __file__)
        assert s3_archive.sweep(0) == orphans.Swept([], 0)
        assert s3_archive.keys() == ["notes/readme.txt"]

    def test_every_removal_is_logged_once(self, archive: Archive) -> None:
        start = newest_log(archive.sessions)
        keys = sorted(archive.stray(str(each).encode()) for each in range(25))
        archive.sweep(0)
        archive.sweep(0)
        assert logged(archive.sessions, start) == [{"count": 25, "keys": keys[:20]}]

    def test_more_objects_than_one_batch(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(orphans, "BATCH", 3)
        keys = sorted(archive.stray(str(each).encode()) for each in range(20))
        dataset = archive.dataset()
        for number, key in enumerate(keys[::2]):
            archive.name(key, dataset, f"{number}.tar")
        assert archive.sweep(0) == orphans.Swept(keys[1::2], 10)
        assert archive.check(deep=True) == []

    def test_half_written_files_go_when_nobody_has_written_to_them_for_an_hour(
        self, archive: Archive
    ) -> None:
        (archive.folder / "objects" / "incoming" / "new").write_bytes(b"hal")
        archive.sweep(0)
        assert (archive.folder / "objects" / "incoming" / "new").exists()


class TestReferences:
    """All that names objects is known."""

    def test_every_column_that_holds_keys_is_listed(self) -> None:
        holding = {
            f"{mapper.class_.__name__}.{name}"
            for mapper in Table.registry.mappers
            for name in mapper.columns.keys()  # noqa: SIM118 - no dict
            if name.endswith("_key") or name == "objects"
        }
        assert holding == {str(column) for column in references.COLUMNS}

    def test_each_of_them_keeps_its_object(self, archive: Archive) -> None:
        keys = iter([archive.stray(str(each).encode()) for each in range(11)])
        owner, dataset = archive.party(), archive.dataset(index_key=next(keys))
        archive.name(next(keys), dataset)
        model = archive.add(
            Model(id=new("mdl"), owner_id=owner, name="m", encoder={}, policy={})
        ).id
        checkpoint = archive.add(
            Checkpoint(
                id=new("ckp"),
                model_id=model,
                state="ready",
                digest="",
                object_key=next(keys),
                bytes=0,
                release_digest="",
                release_key=next(keys),
            )
        ).id
        archive.job(snapshot_key=next(keys))
        request = archive.add(
            Request(
                id=new("req"),
                owner_id=owner,
                model_id=model,
                method="neg_grad",
                params={},
                state="completed",
            )
        ).id
        archive.add(
            Audit(
                id=new("aud"),
                request_id=request,
                owner_id=owner,
                job_id=archive.job(),
                before_checkpoint_id=checkpoint,
                after_checkpoint_id=checkpoint,
                objects={"representation": {"before": {"png": next(keys), "csv": next(keys)}}},
            )
        )
        archive.add(
            Comparison(
                id=new("cmp"),
                owner_id=owner,
                model_id=model,
                job_id=archive.job(),
                checkpoint_id=checkpoint,
                settings={},
                objects={"table.csv": next(keys), "per_seed": [{"scores": next(keys)}]},
            )
        )
        archive.add(
            Encoding(
                id=new("enc"),
                request_id=request,
                owner_id=owner,
                party_id=owner,
                job_id=archive.job(),
                before_checkpoint_id=checkpoint,
                after_checkpoint_id=checkpoint,
                views_key=next(keys),
                outputs_key=next(keys),
            )
        )
        assert next(keys, None) is None
        assert archive.sweep(0) == orphans.Swept([], 11)
        assert archive.check(deep=True) == []
        for key in list(archive.store.keys()):
            archive.store.delete(key)
        broken = archive.check()
        assert len({each.key for each in broken}) == len(broken) == 11
        assert {each.named_by.split()[0] for each in broken} == {
            column.class_.__tablename__ for column in references.COLUMNS
        }


class TestCheck:
    """What is wrong with named objects."""

    def test_missing_and_damaged_objects_are_told_with_the_row_that_names_them(
        self, archive: Archive
    ) -> None:
        dataset = archive.dataset()
        missing, damaged = archive.put(b"missing"), archive.put(b"damaged")
        archive.name(missing, dataset, "a.tar")
        archive.name(damaged, dataset, "b.tar")
        archive.store.delete(missing)
        (archive.folder / "objects" / damaged).write_bytes(b"DAMAGED")
        gone = orphans.Broken(missing, f"shards {dataset}/a.tar", "missing")
        bad = orphans.Broken(damaged, f"shards {dataset}/b.tar", "damaged")
        assert archive.check() == [gone]
        assert archive.check(deep=True) == [gone, bad]

    def test_many_rows_are_read_in_pages(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(references, "PAGE", 2)
        rows = []
        for _, number in itertools.product(range(3), range(3)):
            if number == 0:
                dataset = archive.dataset()
            key = archive.stray(f"{dataset}{number}".encode())
            archive.name(key, dataset, f"{number}.tar")
            rows.append((key, f"shards {dataset}/{number}.tar"))
        assert sorted(references.every(archive.sessions)) == sorted(rows)

    def test_a_store_that_is_away_has_lost_nothing(self, archive: Archive) -> None:
        archive.name(archive.put(b"x"), archive.dataset())
        (archive.folder / "objects").rename(archive.folder / "elsewhere")
        with pytest.raises(StoreUnavailable):
            archive.check()


class TestNaming:
    """A row never names an object that a sweep took."""

    def test_a_lost_lease_stores_nothing(self, archive: Archive) -> None:
        lease = archive.lease()
        archive.lose(lease)
        with pytest.raises(LeaseLost):
            archive.put(b"late", lease=lease)
        assert (archive.keys(), archive.notes()) == ([], {})

    def test_what_was_swept_meanwhile_cannot_be_recorded_but_stored_again(
        self, any_archive: Archive
    ) -> None:
        dataset = any_archive.dataset()
        slow = any_archive.put(b"slow")
        any_archive.let_pass(GRACE_SECONDS + 1)
        any_archive.sweep()
        with pytest.raises(orphans.ObjectRemoved):
            any_archive.name(slow, dataset)
        again = any_archive.put(b"slow")
        assert again != slow
        any_archive.name(again, dataset)
        assert any_archive.sweep(0).removed == []
        assert read_bytes(any_archive.store, again) == b"slow"

    def test_a_put_after_the_sweep_does_not_revive_the_slow_one(self, archive: Archive) -> None:
        dataset = archive.dataset()
        slow = archive.put(b"same bytes")
        archive.sweep(0)
        archive.put(b"same bytes")
        with pytest.raises(orphans.ObjectRemoved):
            archive.name(slow, dataset)
        assert archive.check() == []

    def test_of_two_that_store_the_same_bytes_both_record_them(self, archive: Archive) -> None:
        first, second = archive.put(b"same"), archive.put(b"same")
        assert first == second
        archive.name(first, archive.dataset())
        archive.sweep(0)
        archive.name(second, archive.dataset())
        assert archive.check() == []

    @pytest.mark.parametrize("upload_first", [True, False])
    def test_a_note_that_an_attempt_shares_with_an_upload_outlasts_the_lease(
        self, archive: Archive, upload_first: bool
    ) -> None:
        lease = archive.lease()
        for by in (None, lease) if upload_first else (lease, None):
            key = archive.put(b"shared", lease=by)
        archive.lose(lease)
        assert archive.sweep().removed == []
        archive.name(key, archive.dataset())

    def test_a_retired_key_is_used_again_after_its_time(self, archive: Archive) -> None:
        key = archive.put(b"x")
        archive.sweep(0)
        assert archive.put(b"x") != key
        archive.let_pass(orphans.RETIRED.total_seconds() + 1)
        archive.sweep(0)
        assert archive.put(b"x") == key

    def test_a_rolled_back_recording_ends_no_note(self, archive: Archive) -> None:
        key = archive.put(b"x")
        with archive.sessions() as session:
            orphans.named(session, [key])
            session.rollback()
        assert archive.notes() == {key: None}

    def test_an_object_that_is_being_named_right_now_is_passed_over(self, archive: Archive) -> None:
        dataset, key, other = archive.dataset(), archive.put(b"x"), archive.put(b"y")
        with archive.sessions.begin() as session:
            row = Shard(dataset_id=dataset, name="a.tar", digest="", bytes=0, samples=0)
            row.object_key = key
            session.add(row)
            orphans.named(session, [key])
            assert archive.sweep(0).removed == [other]
        assert archive.check() == []

    def test_an_object_that_was_named_after_the_sweep_had_looked_stays(
        self, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset, key = archive.dataset(), archive.put(b"x")
        look = references.named

        def look_then_let_it_be_named(session: Session, keys: Collection[str]) -> set[str]:
            found = look(session, keys)
            monkeypatch.undo()
            archive.name(key, dataset)
            return found

        monkeypatch.setattr(references, "named", look_then_let_it_be_named)
        assert archive.sweep(0) == orphans.Swept([], 1)
        assert archive.check() == []
