"""Removals of data that other events have taken out of a model, or that others are about to take out."""

import pytest
from tests.registry.conftest import House, Scene, weights

from expunge.registry import audits, checkpoints, jobs, lineage, models
from expunge.registry.audits import Asked, Protocol
from expunge.registry.errors import Conflict
from expunge.registry.tables import Checkpoint, Job, Model, Request
from expunge.registry.waiting import claim

RESULT = {"seconds": 1.0}


def metrics(forgetting: float, utility_after: float = 0.9) -> dict[str, object]:
    """Of a job: mean forgetting score of its unlearn samples, contrastive accuracy 0.9 before."""
    scores = {"unlearn": {"forgetting_score": {"mean": forgetting}}}
    return RESULT | {
        "evaluation": {"encoder": scores},
        "utility": {"before": 0.9, "after": utility_after},
    }


def test_what_the_model_holds_no_more_is_done_without_a_run(house: House, scene: Scene) -> None:
    """The owner trained the model anew, without data that somebody had asked it to forget."""
    request_id = house.ask(scene.first, scene.model, scene.firsts)
    job_id = str(house.request(request_id).job_id)
    head = house.pretrained(scene.model_owner, scene.model, [scene.own])
    assert claim(house.sessions, job_id, worker="tester", lease_seconds=60) is None
    job, request = house.job(job_id), house.request(request_id)
    assert (job.state, job.result_checkpoint_id, job.lease_token) == ("succeeded", None, None)
    assert (request.state, request.reason) == (
        "completed",
        "the model holds none of this data any more",
    )
    assert request.effective_at is not None
    assert house.head(scene.model) == head
    with house.sessions.begin() as session, pytest.raises(Conflict, match="no before and after"):
        audits.create(session, scene.first, Asked(request_id, Protocol(2, 0, 8)))


def test_others_data_that_waits_to_be_forgotten_is_not_trained_on(
    house: House, scene: Scene
) -> None:
    """Only what was asked for before the start counts: a resumed attempt must see the same data."""
    first = house.ask(scene.first, scene.model, scene.firsts)
    house.ask(scene.second, scene.model, scene.seconds, {"epochs": 3})
    lease = house.claim(str(house.request(first).job_id))
    with house.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        base = session.get_one(Checkpoint, scene.base)
        assert lineage.to_forget(session, job, base) == {scene.firsts}
        assert lineage.pending(session, job) == {scene.seconds}
        later = session.get_one(Request, first)
        assert later.state == "running"


def test_every_step_since_the_head_counts_for_automatic_promotion(
    house: House, scene: Scene
) -> None:
    def policy(**change: object) -> None:
        with house.sessions.begin() as session:
            models.change_policy(session, scene.model_owner, scene.model, change)

    def forget(owner: object, dataset_id: str, found: dict[str, object]) -> str:
        request = house.ask(owner, scene.model, dataset_id)  # type: ignore[arg-type]
        lease = house.claim(str(house.request(request).job_id))
        with house.sessions.begin() as session:
            return checkpoints.record_unlearned(session, lease, weights(), found).id

    policy(promotion="manual")
    poor = forget(scene.first, scene.firsts, metrics(0.001))
    policy(promotion="automatic", min_forgetting=0.01)
    last = forget(scene.second, scene.seconds, metrics(0.02))
    assert house.head(scene.model) == scene.base
    with house.sessions() as session:
        result = session.get_one(Checkpoint, last)
        assert result.parent_id == poor
        assert result.problem is not None
        assert "0.001, below 0.01" in result.problem["detail"]
        model = session.get_one(Model, scene.model)
        assert lineage.base_for_unlearning(session, model).id == scene.base


def test_crashes_with_and_without_a_snapshot_do_not_alternate_for_ever(house: House) -> None:
    job_id = house.seal_job()
    crash = jobs.Failure("signal", "ended by SIGKILL")
    for attempt in range(1, 10):
        lease = house.claim(job_id)
        with house.sessions.begin() as session:
            if attempt % 2:
                jobs.note_snapshot(session, lease, "snapshots/a", 50)
            else:
                jobs.drop_snapshot(session, lease, "refused")
            jobs.retry(session, lease, crash, max_attempts=3, retry_seconds=1e-9)
        if house.job(job_id).state == "failed":
            break
    assert attempt == 3


def test_last_words_may_hold_anything(house: House) -> None:
    lease = house.claim(house.seal_job())
    broken = jobs.Failure("exception", "a \0 reason", "half a character: \ud800")
    with house.sessions.begin() as session:
        jobs.fail(session, lease, broken)
    failure = house.job(lease.job_id).failure
    assert failure is not None
    assert (failure["reason"], failure["words"]) == ("a  reason", "half a character: ?")
