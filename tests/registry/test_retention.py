"""Checkpoints that hold what was forgotten: kept for audits, then destroyed, and only then said to be."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from tests.registry.archive import LateStore
from tests.registry.conftest import House, Scene

from expunge.registry import (
    checkpoints,
    destruction,
    jobs,
    lineage,
    models,
    orphans,
    references,
    residue,
    retention,
)
from expunge.registry.database import Sessions
from expunge.registry.errors import CheckpointDestroyed
from expunge.registry.objects import DirectoryStore, ObjectStore
from expunge.registry.tables import (
    Audit,
    Checkpoint,
    CheckpointDataset,
    Encoding,
    Job,
    JobKind,
    LogRow,
    Model,
    Request,
)

UNFINISHED = ("queued", "running", "evaluating")


@dataclass
class Estate:
    """A model and its objects in a real store, and the sweep that looks after them."""

    house: House
    scene: Scene
    store: ObjectStore
    folder: Path

    @property
    def sessions(self) -> Sessions:
        return self.house.sessions

    def put(self, data: bytes, **values: Any) -> str:
        """Bytes that no other test has."""
        own = f"{self.folder} ".encode() + data
        return orphans.put_bytes(self.sessions, self.store, own, self.folder, **values)

    def weights(self, data: bytes) -> checkpoints.StoredWeights:
        full, release = self.put(data), self.put(b"released " + data)
        return checkpoints.StoredWeights(
            f"sha256:{full[-64:]}", full, len(data), f"sha256:{release[-64:]}", release
        )

    def pretrained(self, dataset_ids: list[str], data: bytes) -> str:
        job = self.house.pretraining(self.scene.model_owner, self.scene.model, dataset_ids)
        lease = self.house.claim(job)
        with self.sessions.begin() as session:
            return checkpoints.record_pretrained(
                session, lease, self.weights(data), {"seconds": 1.0}
            ).id

    def forgot_firsts(self, data: bytes = b"result") -> str:
        """A request of the first owner that is in force; everything it set off has ended."""
        request = self.house.ask(self.scene.first, self.scene.model, self.scene.firsts)
        lease = self.house.claim(str(self.house.request(request).job_id))
        with self.sessions.begin() as session:
            checkpoints.record_unlearned(session, lease, self.weights(data), {"seconds": 1.0})
        self.end_work()
        return request

    def end_work(self) -> None:
        with self.sessions.begin() as session:
            for job in session.scalars(select(Job).where(Job.state.in_(UNFINISHED))):
                jobs.cancel(session, job, actor="test", reason="over")

    def let_pass(self, days: float) -> None:
        earlier = Request.effective_at - text(f"interval '{days} days'")
        with self.sessions.begin() as session:
            session.execute(update(Request).values(effective_at=earlier))

    def policy(self, **change: Any) -> None:
        with self.sessions.begin() as session:
            models.change_policy(session, self.scene.model_owner, self.scene.model, change)

    def sweep(self, store: ObjectStore | None = None) -> destruction.Ended:
        retention.start(self.sessions)
        return destruction.finish_all(self.sessions, store or self.store)

    def checkpoint(self, checkpoint_id: str) -> Checkpoint:
        with self.sessions() as session:
            return session.get_one(Checkpoint, checkpoint_id)

    def log(self, subject_id: str) -> list[tuple[str, dict[str, Any]]]:
        with self.sessions() as session:
            rows = select(LogRow).where(LogRow.subject_id == subject_id).order_by(LogRow.seq)
            return [(row.event, row.detail) for row in session.scalars(rows)]

    def stored(self) -> list[str]:
        return sorted(self.store.keys())


@pytest.fixture
def estate(
    house: House, scene: Scene, directory_store: DirectoryStore, tmp_path: Path
) -> Iterator[Estate]:
    """A head that holds everybody's data, with objects of its own."""
    estate = Estate(house, scene, directory_store, tmp_path)
    scene.base = estate.pretrained([scene.own, scene.firsts, scene.seconds], b"base")
    yield estate
    estate.end_work()
    with house.sessions.begin() as session:
        session.execute(text("DELETE FROM pending_objects"))


class TestTime:
    """How long a checkpoint is kept."""

    def test_for_thirty_days_after_a_head_without_the_data_came_into_force(
        self, estate: Estate
    ) -> None:
        request, base = estate.forgot_firsts(), estate.scene.base
        estate.let_pass(29.9)
        assert estate.sweep() == destruction.Ended([], [], {})
        estate.let_pass(0.2)
        # The head of before the base, which the scene pre-trained, held the data as well.
        assert base in estate.sweep().ended
        row, head = estate.checkpoint(base), estate.house.head(estate.scene.model)
        assert (row.state, row.destroyed_at is None) == ("destroyed", False)
        assert estate.checkpoint(str(head)).parent_id == base
        assert {row.object_key, row.release_key}.isdisjoint(estate.stored())
        assert len(estate.stored()) == 2, "of the head"
        (began, why), (ended, told) = estate.log(base)[-2:]
        assert (began, ended) == ("destroying", "destroyed")
        assert why["reason"] == "holds data that was forgotten on request; kept for 30 days after"
        assert (told["digest"], told["objects"]) == (row.digest, 2)
        told = [detail for event, detail in estate.log(request) if event == "checkpoint-destroyed"]
        assert [each.get("checkpoint_id") for each in told] == [None, base]

    def test_a_changed_policy_counts_from_the_next_sweep_on(self, estate: Estate) -> None:
        estate.forgot_firsts()
        estate.let_pass(8)
        assert estate.sweep().ended == []
        estate.policy(keep_days=7)
        assert estate.scene.base in estate.sweep().ended

    def test_a_model_whose_policy_cannot_be_read_holds_up_no_other(self, estate: Estate) -> None:
        scene, house = estate.scene, estate.house
        other = house.model(scene.model_owner)
        base = house.pretrained(scene.model_owner, other, [scene.own, scene.firsts])
        estate.forgot_firsts()
        lease = house.claim(str(house.request(house.ask(scene.first, other, scene.firsts)).job_id))
        with estate.sessions.begin() as session:
            checkpoints.record_unlearned(session, lease, estate.weights(b"other"), {"seconds": 1.0})
        estate.end_work()
        estate.let_pass(31)
        first = Model.id == scene.model
        with estate.sessions.begin() as session:
            session.execute(update(Model).where(first).values(policy={"keep_days": "for ever"}))
        assert estate.sweep().ended == [base]
        with estate.sessions.begin() as session:
            session.execute(update(Model).where(first).values(policy={}))
        assert scene.base in estate.sweep().ended

    def test_zero_days_are_none(self, estate: Estate) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        assert estate.scene.base in estate.sweep().ended

    def test_as_long_as_the_result_waits_nothing_is_destroyed(self, estate: Estate) -> None:
        estate.policy(keep_days=0, promotion="manual")
        estate.forgot_firsts()
        assert estate.sweep().ended == []

    def test_withheld_results_and_invalid_uploads_that_hold_the_data_go_too(
        self, estate: Estate
    ) -> None:
        scene = estate.scene
        estate.policy(promotion="manual")
        other = estate.pretrained([scene.own, scene.firsts], b"never promoted")
        with estate.sessions.begin() as session:
            session.get_one(Checkpoint, other).state = "invalid"
        estate.policy(promotion="automatic", keep_days=0)
        estate.forgot_firsts()
        assert {other, scene.base} <= set(estate.sweep().ended)


class TestNeeded:
    """What is never destroyed."""

    def test_a_head_even_if_it_holds_the_data(self, estate: Estate) -> None:
        """No call leads there; the rule does not rely on that."""
        estate.policy(keep_days=0)
        request, base = estate.forgot_firsts(), estate.scene.base
        with estate.sessions.begin() as session:
            session.get_one(Model, estate.scene.model).head_checkpoint_id = base
        assert base not in estate.sweep().ended
        with estate.sessions() as session:
            found = residue.of(session, session.get_one(Request, request))
        assert (base, "in force") in [(each.id, each.state) for each in found]

    @pytest.mark.parametrize("kind", ["audit", "encode", "compare"])
    def test_what_unfinished_work_compares_with(self, estate: Estate, kind: str) -> None:
        estate.policy(keep_days=0)
        request, base = estate.forgot_firsts(), estate.scene.base
        head = str(estate.house.head(estate.scene.model))
        values = {"base_checkpoint_id": base} if kind == "compare" else {}
        job = estate.house.waiting_job(JobKind(kind), estate.scene.first, **values)
        asked = {
            "request_id": request,
            "owner_id": estate.scene.first.id,
            "party_id": estate.scene.first.id,
            "job_id": job,
            "before_checkpoint_id": base,
            "after_checkpoint_id": head,
        }
        with estate.sessions.begin() as session:
            if kind == "audit":
                session.add(Audit(id=f"aud_{job}", **asked))
            elif kind == "encode":
                session.add(Encoding(id=f"enc_{job}", **asked))
        assert base not in estate.sweep().ended
        estate.end_work()
        assert base in estate.sweep().ended

    def test_what_somebody_holds_this_moment_is_looked_at_by_the_next_sweep(
        self, estate: Estate
    ) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        with estate.sessions.begin() as session:
            retention.hold(session, checkpoint_ids=[estate.scene.base])
            assert estate.scene.base not in estate.sweep().ended
        assert estate.scene.base in estate.sweep().ended
        with estate.sessions() as session, pytest.raises(CheckpointDestroyed) as refusal:
            retention.hold(session, checkpoint_ids=[estate.scene.base])
        assert "was destroyed on 20" in refusal.value.detail

    def test_promotion_and_sweep_take_turns(self, estate: Estate) -> None:
        """Neither goes on from what it read before the other one ended."""
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        base, began = estate.scene.base, threading.Event()
        refused: list[CheckpointDestroyed] = []

        def promote() -> None:
            with estate.sessions() as session:
                assert session.get_one(Checkpoint, base).state == "ready"
                began.set()
                try:
                    checkpoints.promote(session, estate.scene.model_owner, base)
                except CheckpointDestroyed as error:
                    refused.append(error)

        with estate.sessions.begin() as session:
            session.get_one(Model, estate.scene.model, with_for_update={"key_share": True})
            thread = threading.Thread(target=promote)
            thread.start()
            assert began.wait(10)
            row = session.get_one(Checkpoint, base)
            row.state = "destroying"
        thread.join()
        assert refused


class TestFailure:
    """Nothing is said to be gone that is not, and nothing is forgotten half-way."""

    def test_a_store_that_is_away_leaves_it_to_the_next_sweep(self, estate: Estate) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        base = estate.scene.base
        assert list(estate.sweep(LateStore(estate.folder / "objects")).failed) == [base]
        assert estate.checkpoint(base).state == "destroying"
        assert "destroyed" not in [event for event, _ in estate.log(base)]
        assert base in estate.sweep().ended
        estate.sweep()
        assert [event for event, _ in estate.log(base)].count("destroyed") == 1

    def test_what_a_crash_left_is_ended_and_logged_once(self, estate: Estate) -> None:
        """After the objects were unnamed, and again after one of them was deleted."""
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        base = estate.scene.base
        retention.start(estate.sessions)
        row = estate.checkpoint(base)
        with estate.sessions() as session:
            assert references.named(session, [row.object_key]) == set()
        estate.store.delete(row.release_key)
        sweeps = [threading.Thread(target=estate.sweep) for _ in range(4)]
        for each in sweeps:
            each.start()
        for each in sweeps:
            each.join()
        assert estate.checkpoint(base).state == "destroyed"
        assert [event for event, _ in estate.log(base)].count("destroyed") == 1
        assert row.object_key not in estate.stored()

    def test_the_ordinary_sweep_may_be_first(self, estate: Estate) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        retention.start(estate.sessions)
        orphans.sweep(estate.sessions, estate.store, grace_seconds=0)
        assert estate.scene.base in destruction.finish_all(estate.sessions, estate.store).ended

    def test_bytes_that_another_checkpoint_names_stay_and_the_log_says_so(
        self, estate: Estate
    ) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        base, key = estate.scene.base, estate.checkpoint(estate.scene.base).object_key
        same = estate.pretrained([estate.scene.own], b"base")
        assert estate.checkpoint(same).object_key == key
        assert base in estate.sweep().ended
        told = estate.log(base)[-1][1]
        assert (told["kept"], told["objects"]) == (2, 0)
        assert "named by something else" in told["why_kept"]
        assert key in estate.stored()

    def test_what_an_attempt_is_storing_is_waited_for(self, estate: Estate) -> None:
        estate.policy(keep_days=0)
        estate.forgot_firsts()
        base = estate.scene.base
        lease = estate.house.claim(estate.house.seal_job())
        key = estate.put(b"base", lease=lease)
        assert base in estate.sweep().waiting
        assert key in estate.stored()
        estate.end_work()
        assert base in estate.sweep().ended


def test_a_removal_builds_on_what_waits_though_a_newer_one_was_destroyed(estate: Estate) -> None:
    scene = estate.scene
    estate.policy(promotion="manual", keep_days=0)
    estate.forgot_firsts(b"waiting")
    with estate.sessions.begin() as session:
        waiting = session.scalars(
            select(Checkpoint.id).where(
                Checkpoint.model_id == scene.model, Checkpoint.parent_id == scene.base
            )
        ).one()
        newer = Checkpoint(
            id="ckp_zzz",
            model_id=scene.model,
            parent_id=scene.base,
            state="destroyed",
            digest="",
            object_key="",
            bytes=0,
            release_digest="",
            release_key="",
            datasets=[CheckpointDataset(dataset_id=scene.firsts, forgotten=False)],
        )
        session.add(newer)
        session.flush()
        model = session.get_one(Model, scene.model)
        assert lineage.base_for_unlearning(session, model).id == waiting
        session.rollback()
