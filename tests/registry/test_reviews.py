"""Which requests a review is about, and what it compares, by rows alone."""

import hashlib
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from tests.registry.conftest import House, Scene, weights

from expunge.evidence.protocol import protocol
from expunge.registry import alerts, checkpoints, jobs, reviews
from expunge.registry.errors import NotFound
from expunge.registry.tables import Alert, Audit, Checkpoint, Job, LogRow, Role
from expunge.registry.transitions import LeaseLost

REPORT = {"verdict": {"code": "forgotten"}}


def forget(scene: Scene, dataset_id: str) -> tuple[str, str]:
    """Ask and carry out; ids of request and result."""
    owner = scene.first if dataset_id == scene.firsts else scene.second
    request_id = scene.house.ask(owner, scene.model, dataset_id)
    lease = scene.house.claim(str(scene.house.request(request_id).job_id))
    with scene.house.sessions.begin() as session:
        result = checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
        return request_id, result.id


def queued(house: House, model: str) -> list[Job]:
    with house.sessions() as session:
        waiting = select(Job).where(
            Job.kind == "review", Job.state == "queued", Job.model_id == model
        )
        return list(session.scalars(waiting.order_by(Job.id)))


def begun(house: House, job_id: str, newest: int = 10) -> tuple[jobs.Lease, list[Audit]]:
    """The review claimed, and the audits that it opens."""
    lease = house.claim(job_id)
    with house.sessions.begin() as session:
        assert reviews.begin(session, lease, newest=newest) is not None
    return lease, audits_of(house, job_id)


def audits_of(house: House, job_id: str) -> list[Audit]:
    with house.sessions() as session:
        return list(session.scalars(select(Audit).where(Audit.job_id == job_id)))


def new_head(scene: Scene, *dataset_ids: str) -> str:
    """A pre-training that comes into force."""
    return scene.house.pretrained(scene.model_owner, scene.model, list(dataset_ids))


def test_a_removal_queues_one_review_whose_audits_stand_ready(house: House, scene: Scene) -> None:
    request_id, result = forget(scene, scene.firsts)
    (job,) = queued(house, scene.model)
    (audit,) = audits_of(house, job.id)
    assert (audit.request_id, audit.owner_id, audit.purpose) == (
        request_id,
        scene.first.id,
        "protocol",
    )
    assert (audit.before_checkpoint_id, audit.after_checkpoint_id) == (scene.base, result)
    assert audit.state == "queued"
    assert audit.asked["dataset_ids"] == [scene.firsts]


def test_the_protocol_is_what_the_log_has_had_since_the_request(
    house: House, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the service's own idea of it changes while the request waits."""
    request_id = house.ask(scene.first, scene.model, scene.firsts)
    fixed = protocol(scene.model, request_id)
    monkeypatch.setattr("expunge.evidence.protocol.VIEWS", 99)
    lease = house.claim(str(house.request(request_id).job_id))
    with house.sessions.begin() as session:
        checkpoints.record_unlearned(session, lease, weights(), {"seconds": 1.0})
    (audit,) = audits_of(house, queued(house, scene.model)[0].id)
    assert fixed.items() <= audit.asked.items()
    assert audit.asked["views"] == 10


def test_seeds_come_from_the_ids_and_are_exact_in_json() -> None:
    first, second = protocol("mdl_1", "req_1"), protocol("mdl_1", "req_2")
    assert first["seed"] == second["seed"] != protocol("mdl_2", "req_1")["seed"]
    assert first["draw"]["seed"] != second["draw"]["seed"]
    digest = hashlib.sha256(b"mdl_1").hexdigest()
    assert f"{first['seed']:012x}" == digest[:12]


def test_a_later_head_reviews_past_requests_from_their_own_result_on(
    house: House, scene: Scene
) -> None:
    first, result = forget(scene, scene.firsts)
    _, head = forget(scene, scene.seconds)
    (under_head,) = (job for job in queued(house, scene.model) if "head_id" in job.params)
    _, (audit,) = begun(house, under_head.id)
    assert audit.request_id == first, "the second request's own audit is about this very head"
    assert (audit.before_checkpoint_id, audit.after_checkpoint_id) == (scene.base, head)
    assert audit.settings is not None
    assert audit.settings["since_checkpoint_id"] == result


def test_a_head_that_only_carries_out_requests_needs_no_further_review(
    house: House, scene: Scene
) -> None:
    forget(scene, scene.firsts)
    (job,) = queued(house, scene.model)
    assert "head_id" not in job.params


def test_a_head_trained_anew_is_reviewed_and_only_the_newest_requests(
    house: House, scene: Scene
) -> None:
    forget(scene, scene.firsts)
    second, _ = forget(scene, scene.seconds)
    head = new_head(scene, scene.own)
    job = queued(house, scene.model)[-1]
    assert job.params == {"head_id": head}
    _, (audit,) = begun(house, job.id, newest=1)
    assert audit.request_id == second


def destroy(house: House, *checkpoint_ids: str) -> None:
    with house.sessions.begin() as session:
        chosen = update(Checkpoint).where(Checkpoint.id.in_(checkpoint_ids))
        session.execute(chosen.values(state="destroyed"))


class TestWhatWasDestroyed:
    """After their time, bases and results are no more."""

    def test_without_the_base_the_result_is_compared_with_the_head(
        self, house: House, scene: Scene
    ) -> None:
        _, result = forget(scene, scene.firsts)
        new_head(scene, scene.own)
        destroy(house, scene.base)
        _, (audit,) = begun(house, queued(house, scene.model)[-1].id)
        assert audit.before_checkpoint_id == result

    def test_without_both_the_oldest_head_since_that_has_none_of_the_data(
        self, house: House, scene: Scene
    ) -> None:
        _, result = forget(scene, scene.firsts)
        between = new_head(scene, scene.own)
        new_head(scene, scene.own)
        destroy(house, scene.base, result)
        _, (audit,) = begun(house, queued(house, scene.model)[-1].id)
        assert audit.before_checkpoint_id == between
        assert audit.settings is not None
        assert audit.settings["since_checkpoint_id"] == between

    def test_with_nothing_left_to_compare_there_is_no_audit(
        self, house: House, scene: Scene
    ) -> None:
        _, result = forget(scene, scene.firsts)
        new_head(scene, scene.own)
        destroy(house, scene.base, result)
        lease, found = begun(house, queued(house, scene.model)[-1].id)
        assert found == []
        with house.sessions.begin() as session:
            reviews.finish(session, lease, {})
        assert house.job(lease.job_id).metrics == {"audits": 0, "given_up": 0}


def test_a_superseded_head_ends_its_review_at_once(house: House, scene: Scene) -> None:
    forget(scene, scene.firsts)
    new_head(scene, scene.own)
    newest = new_head(scene, scene.own)
    job = queued(house, scene.model)[-2]
    lease = house.claim(job.id)
    with house.sessions.begin() as session:
        assert reviews.begin(session, lease, newest=10) is None
    assert house.job(job.id).state == "succeeded"
    assert house.job(job.id).metrics == {"superseded_by": newest}


def settle(session: Session, lease: jobs.Lease, audit_id: str, **detail: Any) -> None:
    reviews.settle(
        session, lease, audit_id, report=REPORT, bundle_key="none", relearned=detail or None
    )


def test_settled_audits_stay_when_the_attempt_loses_its_lease(house: House, scene: Scene) -> None:
    forget(scene, scene.firsts)
    forget(scene, scene.seconds)
    new_head(scene, scene.own)
    zombie, (one, two) = begun(house, queued(house, scene.model)[-1].id)
    with house.sessions.begin() as session:
        settle(session, zombie, one.id)
    with house.sessions.begin() as session:
        jobs.release(session, zombie, "its worker was stopped")
    with pytest.raises(LeaseLost), house.sessions.begin() as session:
        settle(session, zombie, two.id)
    lease = house.claim(zombie.job_id)
    with house.sessions.begin() as session:
        assert reviews.begin(session, lease, newest=10) == [two.id]
    with house.sessions.begin() as session:
        reviews.give_up(session, lease, two.id, "its samples are gone")
        reviews.finish(session, lease, {})
    states = {each.id: each.state for each in audits_of(house, lease.job_id)}
    assert states == {one.id: "succeeded", two.id: "failed"}
    assert house.job(lease.job_id).metrics == {"audits": 1, "given_up": 1}


def test_progress_counts_crashes_anew(house: House, scene: Scene) -> None:
    """A review over a thousand requests is not given up because of three crashes in all."""
    forget(scene, scene.firsts)
    job_id = queued(house, scene.model)[0].id
    crash = jobs.Failure("signal", "ended by SIGKILL")
    for attempt in (1, 2):
        lease = house.claim(job_id)
        with house.sessions.begin() as session:
            if attempt == 2:
                settle(session, lease, audits_of(house, job_id)[0].id)
            jobs.retry(session, lease, crash, max_attempts=2, retry_seconds=0)
    assert house.job(job_id).state == "queued"


class TestAlerts:
    """One per request and head, acknowledged by the model's owner."""

    @pytest.fixture
    def alert(self, house: House, scene: Scene) -> Alert:
        forget(scene, scene.firsts)
        new_head(scene, scene.own)
        lease, (audit,) = begun(house, queued(house, scene.model)[-1].id)
        with house.sessions.begin() as session:
            settle(session, lease, audit.id, p=0.0002)
        with house.sessions() as session:
            row = session.scalars(select(Alert).where(Alert.request_id == audit.request_id)).one()
        assert row.detail == {"p": 0.0002}
        return row

    def events(self, house: House, request_id: str) -> list[str]:
        with house.sessions() as session:
            about = select(LogRow.event).where(LogRow.subject_id == request_id)
            return list(session.scalars(about.order_by(LogRow.seq)))

    def test_the_log_of_the_request_has_it(self, house: House, alert: Alert) -> None:
        assert self.events(house, alert.request_id)[-2:] == ["audited", "relearned"]

    def test_saying_it_again_makes_no_second_one(self, house: House, alert: Alert) -> None:
        with house.sessions.begin() as session:
            audit = session.scalars(
                select(Audit).where(
                    Audit.request_id == alert.request_id,
                    Audit.after_checkpoint_id == alert.checkpoint_id,
                )
            ).one()
            alerts.relearned(session, audit, {"p": 0.0})
        with house.sessions() as session:
            about = select(Alert).where(Alert.request_id == alert.request_id)
            assert session.scalars(about).one().detail == {"p": 0.0002}
        assert self.events(house, alert.request_id).count("relearned") == 1

    def test_acknowledging_twice_changes_nothing(
        self, house: House, scene: Scene, alert: Alert
    ) -> None:
        times = []
        for _ in range(2):
            with house.sessions.begin() as session:
                row = alerts.acknowledge(session, scene.model_owner, alert.id)
                times.append((row.acknowledged_at, row.acknowledged_by))
        assert times[0] == times[1]
        assert times[0][1] == scene.model_owner.id
        assert self.events(house, alert.request_id).count("acknowledged") == 1

    def test_only_the_models_owner_acknowledges(
        self, house: House, scene: Scene, alert: Alert
    ) -> None:
        for party in (scene.first, house.party(Role.MODEL_OWNER)):
            with pytest.raises(NotFound), house.sessions.begin() as session:
                alerts.acknowledge(session, party, alert.id)
