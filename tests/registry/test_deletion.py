"""An owner deletes a data set: refused while something needs it, gone for good afterwards."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from tests.registry.archive import LateStore
from tests.registry.conftest import House, Scene, weights

from expunge.registry import (
    checkpoints,
    datasets,
    deletion,
    destruction,
    jobs,
    models,
    orphans,
    requests,
    residue,
    retention,
    reviews,
)
from expunge.registry.database import Sessions
from expunge.registry.errors import (
    Conflict,
    DatasetDeleted,
    DatasetInUse,
    DomainError,
    NotFound,
)
from expunge.registry.objects import DirectoryStore, StoreUnavailable
from expunge.registry.tables import (
    Audit,
    Comparison,
    Dataset,
    Encoding,
    Job,
    JobKind,
    LogRow,
    Model,
    Party,
    Request,
    Role,
)
from expunge.registry.transitions import move
from expunge.unlearning.catalog import PretrainParams

UNFINISHED = ("queued", "running", "evaluating")


@dataclass
class Estate:
    """A model that somebody's data set was trained on, whose objects are in a real store."""

    house: House
    scene: Scene
    store: DirectoryStore
    folder: Path
    shard: str
    index: str

    @property
    def sessions(self) -> Sessions:
        return self.house.sessions

    @property
    def dataset(self) -> str:
        return self.scene.firsts

    def put(self, data: bytes) -> str:
        own = f"{self.folder} ".encode() + data
        return orphans.put_bytes(self.sessions, self.store, own, self.folder)

    def start(self) -> Dataset:
        with self.sessions.begin() as session:
            return deletion.start(session, self.scene.first, self.dataset)

    def refusal(self) -> list[tuple[str, str | None]]:
        """What holds it."""
        with pytest.raises(DatasetInUse) as refusal:
            self.start()
        return [(each["what"], each["id"]) for each in refusal.value.extensions["held_by"]]

    def finish(self) -> bool:
        return destruction.finish(self.sessions, self.store, self.dataset)

    def forgotten(self) -> str:
        """A request about it that is in force; the audits that it set off have ended."""
        request = self.house.ask(self.scene.first, self.scene.model, self.dataset)
        lease = self.house.claim(str(self.house.request(request).job_id))
        with self.sessions.begin() as session:
            checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
        self.end_work()
        return request

    def end_work(self) -> None:
        with self.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.state.in_(UNFINISHED))):
                jobs.cancel(session, job, actor="test", reason="over")

    def row(self) -> Dataset:
        with self.sessions() as session:
            return session.get_one(Dataset, self.dataset)

    def log(self) -> list[tuple[str, dict[str, Any]]]:
        with self.sessions() as session:
            rows = select(LogRow).where(LogRow.subject_id == self.dataset).order_by(LogRow.seq)
            return [(row.event, row.detail) for row in session.scalars(rows)]

    def stored(self) -> set[str]:
        return set(self.store.keys())


@pytest.fixture
def estate(
    house: House, scene: Scene, directory_store: DirectoryStore, tmp_path: Path
) -> Iterator[Estate]:
    estate = Estate(house, scene, directory_store, tmp_path, "", "")
    estate.shard, estate.index = estate.put(b"shard"), estate.put(b"index")
    with house.sessions.begin() as session:
        dataset = datasets.create(session, scene.first, f"holiday {tmp_path.name}")
        shard = datasets.StoredShard("me-at-the-beach.tar", "sha256:1", 10, 3, estate.shard)
        datasets.add_shard(session, scene.first, dataset.id, shard)
        move(session, dataset, "sealing")
        move(session, dataset, "sealed", digest="sha256:2", index_key=estate.index)
        orphans.named(session, [estate.index])
        datasets.grant(session, scene.first, dataset.id, scene.model_owner.id)
    scene.firsts = dataset.id
    scene.base = house.pretrained(scene.model_owner, scene.model, [scene.own, dataset.id])
    yield estate
    estate.end_work()
    with house.sessions.begin() as session:
        session.execute(text("DELETE FROM pending_objects"))


class TestHeld:
    """What keeps an owner from deleting; each names what to do."""

    def test_a_head_that_holds_it(self, estate: Estate) -> None:
        assert estate.refusal() == [("model", estate.scene.model)]
        assert estate.stored() == {estate.shard, estate.index}

    def test_a_request_that_has_not_ended_and_its_job(self, estate: Estate) -> None:
        with estate.sessions.begin() as session:
            change = {"approval": "manual"}
            models.change_policy(session, estate.scene.model_owner, estate.scene.model, change)
        request = estate.house.ask(estate.scene.first, estate.scene.model, estate.dataset)
        assert ("request", request) in estate.refusal()
        with estate.sessions.begin() as session:
            requests.approve(session, estate.scene.model_owner, request)
        estate.house.claim(str(estate.house.request(request).job_id))
        assert {"model", "request", "job"} == {what for what, _ in estate.refusal()}

    def test_a_training_that_waits(self, estate: Estate) -> None:
        other = estate.house.model(estate.scene.model_owner)
        estate.house.pretrained(estate.scene.model_owner, estate.scene.model, [estate.scene.own])
        estate.house.pretraining(estate.scene.model_owner, other, [estate.dataset])
        assert estate.refusal() == [("job", None)]

    @pytest.mark.parametrize("table", [Audit, Encoding])
    def test_an_audit_or_encoding_that_has_not_ended(
        self, estate: Estate, table: type[Audit] | type[Encoding]
    ) -> None:
        request = estate.forgotten()
        job = estate.house.waiting_job(JobKind.AUDIT, estate.scene.first)
        row = table(
            id=f"x_{job}",
            request_id=request,
            owner_id=estate.scene.first.id,
            party_id=estate.scene.first.id,
            job_id=job,
            before_checkpoint_id=estate.scene.base,
            after_checkpoint_id=str(estate.house.head(estate.scene.model)),
        )
        with estate.sessions.begin() as session:
            session.add(row)
        assert estate.refusal() == [(table.__name__.lower(), f"x_{job}")]

    def test_control_images_until_the_grant_is_withdrawn(self, estate: Estate) -> None:
        estate.forgotten()
        other = estate.house.model(estate.scene.model_owner)
        with estate.sessions.begin() as session:
            models.set_control(session, estate.scene.model_owner, other, estate.dataset)
        assert estate.refusal() == [("control", other)]
        with estate.sessions.begin() as session:
            datasets.withdraw_grant(
                session, estate.scene.first, estate.dataset, estate.scene.model_owner.id
            )
        estate.start()
        with estate.sessions() as session:
            assert session.get_one(Model, other).control_dataset_id is None

    def test_a_data_set_of_somebody_else_does_not_exist(self, estate: Estate) -> None:
        with estate.sessions.begin() as session, pytest.raises(NotFound):
            deletion.start(session, estate.scene.second, estate.dataset)


class TestGone:
    """What deletion does."""

    def test_samples_name_and_grants_go_and_the_evidence_stays(self, estate: Estate) -> None:
        estate.forgotten()
        estate.start()
        row = estate.row()
        assert (row.state, row.name, row.shards, row.index_key) == ("deleting", "", [], None)
        assert estate.log()[-1][0] == "deleting"
        assert estate.finish()
        row = estate.row()
        assert (row.state, row.deleted_at is None) == ("deleted", False)
        assert (row.digest, row.samples, row.bytes) == ("sha256:2", 3, 10)
        assert estate.stored() == set()
        event, told = estate.log()[-1]
        assert (event, told) == ("deleted", {"objects": 2, "digest": "sha256:2"})
        with estate.sessions() as session:
            readable = session.get_one(Party, estate.scene.model_owner.id)
            with pytest.raises(NotFound):
                datasets.usable(session, readable, [estate.dataset])

    def test_again_changes_nothing(self, estate: Estate) -> None:
        estate.forgotten()
        estate.start()
        estate.finish()
        assert estate.start().state == "deleted"
        assert estate.finish()
        assert [event for event, _ in estate.log()].count("deleted") == 1

    def test_pictures_and_outputs_of_audits_go_too_and_their_reports_stay(
        self, estate: Estate
    ) -> None:
        request = estate.forgotten()
        keys = {name: estate.put(name.encode()) for name in ("bundle", "outputs", "views")}
        asked = {
            "request_id": request,
            "owner_id": estate.scene.first.id,
            "party_id": estate.scene.first.id,
            "before_checkpoint_id": estate.scene.base,
            "after_checkpoint_id": str(estate.house.head(estate.scene.model)),
        }
        jobs_ = [estate.house.waiting_job(JobKind.AUDIT, estate.scene.first) for _ in range(2)]
        estate.end_work()
        with estate.sessions.begin() as session:
            audit = Audit(id=f"aud_{jobs_[0]}", job_id=jobs_[0], report={"n": 1}, **asked)
            audit.objects = {"bundle": keys["bundle"]}
            encoding = Encoding(id=f"enc_{jobs_[1]}", job_id=jobs_[1], **asked)
            encoding.outputs_key, encoding.views_key = keys["outputs"], keys["views"]
            session.add_all([audit, encoding])
        estate.start()
        assert estate.finish()
        assert estate.stored() == set()
        with estate.sessions() as session:
            found = session.get_one(Audit, audit.id)
            assert (found.objects, found.report) == (None, {"n": 1})
            left = residue.of(session, session.get_one(Request, request))
        assert {each.what for each in left} == {"checkpoint", "memory", "record", "outside"}

    def test_what_was_never_trained_on_goes_at_once(self, estate: Estate) -> None:
        with estate.sessions.begin() as session:
            empty = datasets.create(session, estate.scene.first, f"open {estate.folder.name}")
            assert deletion.start(session, estate.scene.first, empty.id).state == "deleting"
        assert destruction.finish(estate.sessions, estate.store, empty.id)

    def test_the_name_is_free_again_and_two_may_be_deleted(self, estate: Estate) -> None:
        name = f"again {estate.folder.name}"
        for _ in range(2):
            with estate.sessions.begin() as session:
                row = datasets.create(session, estate.scene.first, name)
                deletion.start(session, estate.scene.first, row.id)

    def test_nothing_can_be_done_with_it(self, estate: Estate) -> None:
        request = estate.forgotten()
        estate.start()
        owner, dataset = estate.scene.first, estate.dataset
        with estate.sessions() as session:
            for call in (
                lambda: datasets.check_accepts_shards(datasets.owned(session, owner, dataset)),
                lambda: datasets.start_sealing(session, owner, dataset),
                lambda: datasets.grant(session, owner, dataset, estate.scene.model_owner.id),
                lambda: datasets.usable(session, owner, [dataset]),
                lambda: retention.hold(session, dataset_ids=[dataset]),
            ):
                with pytest.raises(DatasetDeleted):
                    call()
        assert estate.house.request(request).state == "completed"

    def test_what_still_holds_it_never_becomes_a_head(self, estate: Estate) -> None:
        """The model was trained anew without it; nobody asked for a removal."""
        estate.house.pretrained(estate.scene.model_owner, estate.scene.model, [estate.scene.own])
        estate.start()
        with estate.sessions.begin() as session, pytest.raises(Conflict, match="owner deleted"):
            checkpoints.promote(session, estate.scene.model_owner, estate.scene.base)


class TestFailure:
    """Nothing is said to be gone that is not."""

    def test_a_store_that_is_away_leaves_it_to_the_sweep(self, estate: Estate) -> None:
        estate.forgotten()
        estate.start()
        with pytest.raises(StoreUnavailable):
            destruction.finish(
                estate.sessions, LateStore(estate.folder / "objects"), estate.dataset
            )
        assert estate.row().state == "deleting"
        assert "deleted" not in [event for event, _ in estate.log()]
        assert estate.dataset in destruction.finish_all(estate.sessions, estate.store).ended
        assert estate.row().state == "deleted"

    def test_bytes_that_another_data_set_names_stay_and_the_log_says_so(
        self, estate: Estate
    ) -> None:
        estate.forgotten()
        other = estate.house.party(Role.DATA_OWNER)
        with estate.sessions.begin() as session:
            copy = datasets.create(session, other, "copy")
            shard = datasets.StoredShard("a.tar", "sha256:1", 10, 3, estate.shard)
            datasets.add_shard(session, other, copy.id, shard)
        estate.start()
        assert estate.finish()
        assert estate.stored() == {estate.shard}
        told = estate.log()[-1][1]
        assert (told["objects"], told["kept"]) == (1, 1)

    def test_many_objects_are_left_to_the_sweep(
        self, estate: Estate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(destruction, "FEW_OBJECTS", 1)
        estate.forgotten()
        estate.start()
        destruction.finish_if_quick(estate.sessions, estate.store, estate.dataset)
        assert estate.row().state == "deleting"
        monkeypatch.undo()
        destruction.finish_if_quick(estate.sessions, estate.store, estate.dataset)
        assert estate.row().state == "deleted"


def test_a_comparison_that_tests_on_it_has_to_end_first(estate: Estate) -> None:
    """Its worker has a copy, also where the model's owner has named other control images since."""
    scene = estate.scene
    control = estate.house.sealed(scene.first, scene.model_owner)
    job = estate.house.waiting_job(JobKind.COMPARE, model_id=scene.model)
    with estate.sessions.begin() as session:
        session.add(
            Comparison(
                id=f"cmp_{control}",
                owner_id=scene.model_owner.id,
                model_id=scene.model,
                job_id=job,
                checkpoint_id=scene.base,
                settings={"dataset_ids": [], "control_dataset_id": control},
            )
        )
    with pytest.raises(DatasetInUse), estate.sessions.begin() as session:
        deletion.start(session, scene.first, control)
    estate.end_work()
    with estate.sessions.begin() as session:
        assert deletion.start(session, scene.first, control).state == "deleting"


def review_under_new_head(estate: Estate) -> jobs.Lease:
    """Claimed, of a head that was trained anew without the data after they were forgotten."""
    estate.forgotten()
    scene = estate.scene
    estate.house.pretrained(scene.model_owner, scene.model, [scene.own])
    with estate.sessions() as session:
        waiting = select(Job.id).where(
            Job.kind == JobKind.REVIEW, Job.state == "queued", Job.model_id == scene.model
        )
        job_id = session.scalars(waiting).one()
    return estate.house.claim(job_id)


def test_a_deletion_waits_for_a_review_that_chooses_what_to_audit(estate: Estate) -> None:
    """Else small pictures of deleted samples would be stored after them."""
    lease = review_under_new_head(estate)
    with estate.sessions.begin() as session:
        assert len(reviews.begin(session, lease, newest=10) or []) == 1
        with estate.sessions() as other:
            other.execute(text("SET LOCAL lock_timeout = '20ms'"))
            with pytest.raises(OperationalError, match="lock timeout"):
                deletion.start(other, estate.scene.first, estate.dataset)
    assert [what for what, _ in estate.refusal()] == ["audit"]


def test_a_reviews_audit_that_is_settled_holds_nothing_back(estate: Estate) -> None:
    """The review goes on for requests of others: how long is not the owner's concern."""
    lease = review_under_new_head(estate)
    with estate.sessions.begin() as session:
        audit_ids = reviews.begin(session, lease, newest=10)
        assert audit_ids is not None
        for each in audit_ids:
            reviews.give_up(session, lease, each, "a test")
    estate.start()
    assert estate.row().state == "deleting"


@pytest.mark.parametrize("deletion_first", [True, False])
def test_of_a_deletion_and_a_training_at_once_one_is_refused(
    estate: Estate, deletion_first: bool
) -> None:
    """Whoever comes second waits for the first to commit, and sees what it did."""
    scene = estate.scene
    dataset = estate.house.sealed(scene.first, scene.model_owner)
    refused: list[DomainError] = []

    def delete(session: Session) -> None:
        deletion.start(session, scene.first, dataset)

    def train(session: Session) -> None:
        params = PretrainParams()
        models.start_pretraining(session, scene.model_owner, scene.model, [dataset], params, seed=0)

    first, second = (delete, train) if deletion_first else (train, delete)

    def come_second() -> None:
        try:
            with estate.sessions.begin() as session:
                second(session)
        except DomainError as error:
            refused.append(error)

    with estate.sessions.begin() as session:
        first(session)
        thread = threading.Thread(target=come_second)
        thread.start()
    thread.join()
    assert [type(each) for each in refused] in (
        [[DatasetDeleted], [NotFound]] if deletion_first else [[DatasetInUse]]
    )
