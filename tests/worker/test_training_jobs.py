"""Pre-training and unlearning jobs with their real training processes."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from sqlalchemy import select, update
from tests.worker.lab import LONG, MOCO, Lab, Running, World

from expunge.registry import checkpoints, datasets, jobs, models, waiting
from expunge.registry.errors import Conflict, Invalid, NotFound
from expunge.registry.objects import fetch
from expunge.registry.tables import Checkpoint, Job, LogRow, Request


def test_pretraining_records_weights_metrics_and_the_first_head(lab: Lab, world: World) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert (job.state, job.attempt, job.lease_token) == ("succeeded", 1, None)
    assert job.metrics is not None
    assert job.metrics["steps"] == 2 * (64 // 16)
    assert len(job.metrics["history"]) == 2
    assert lab.head(world.model) == job.result_checkpoint_id
    with lab.sessions() as session:
        checkpoint = session.get_one(Checkpoint, job.result_checkpoint_id)
        assert checkpoint.trained_on == sorted(world.training_data)
        assert checkpoint.forgotten == []


def test_the_same_job_gives_the_same_weights(lab: Lab, world: World) -> None:
    digests = set()
    for _ in range(2):
        job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
        lab.runner.run(job_id)
        with lab.sessions() as session:
            digests.add(session.get_one(Checkpoint, lab.job(job_id).result_checkpoint_id).digest)
    assert len(digests) == 1


def test_requests_within_the_window_become_one_job_and_both_complete(lab: Lab) -> None:
    world = World(lab, batch_window_seconds=600)
    lab.runner.run(lab.pretraining(world.model_owner, world.model, world.training_data))
    base = lab.head(world.model)
    first = lab.request(world.first_owner, world.model, [world.first])
    second = lab.request(world.second_owner, world.model, [world.second])
    job = lab.job_of(first)
    assert job.id == lab.job_of(second).id
    lab.runner.run(job.id)
    assert lab.job(job.id).state == "queued", "the window is still open"
    with lab.sessions.begin() as session:
        waiting.make_due(session, session.get_one(Job, job.id))
    lab.runner.run(job.id)
    job = lab.job(job.id)
    assert job.state == "succeeded", job.reason
    with lab.sessions() as session:
        assert {session.get_one(Request, each).state for each in (first, second)} == {"completed"}
        result = session.get_one(Checkpoint, job.result_checkpoint_id)
        assert (result.parent_id, result.id) == (base, lab.head(world.model))
        assert result.trained_on == sorted(world.training_data)
        assert result.forgotten == sorted([world.first, world.second])
        events = session.scalars(
            select(LogRow.event).where(LogRow.subject_id == job.id).order_by(LogRow.seq)
        ).all()
    assert list(events) == ["queued", "running", "evaluating", "succeeded"]
    assert job.metrics is not None
    assert set(job.metrics["evaluation"]["encoder"]) == {"unlearn", "retain"}


def test_what_may_leave_a_moco_checkpoint_holds_no_queue_and_no_key_encoder(
    lab: Lab, tmp_path: Path
) -> None:
    world = World(lab, MOCO)
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    lab.runner.run(job_id)
    with lab.sessions() as session:
        checkpoint = session.get_one(Checkpoint, lab.job(job_id).result_checkpoint_id)
    fetch(lab.store, checkpoint.object_key, tmp_path / "inside")
    fetch(lab.store, checkpoint.release_key, tmp_path / "released")
    with (
        safe_open(tmp_path / "inside", "np") as inside,
        safe_open(tmp_path / "released", "np") as released,
    ):
        assert {"queue", "queue_ids"} <= set(inside.keys())
        kept = {name for name in inside.keys() if name.startswith(("encoder.", "projector."))}  # noqa: SIM118
        assert set(released.keys()) == kept
        assert released.metadata() == inside.metadata()
        for name in kept:
            assert (released.get_tensor(name) == inside.get_tensor(name)).all()


@pytest.fixture
def long_job(lab: Lab, world: World) -> str:
    return lab.pretraining(world.model_owner, world.model, world.training_data, LONG)


def test_a_worker_that_lost_its_lease_writes_nothing(lab: Lab, world: World, long_job: str) -> None:
    with Running(lab, long_job) as running:
        with lab.sessions.begin() as session:
            session.execute(
                update(Job).where(Job.id == long_job).values(lease_token="another attempt")
            )
        running.thread.join(30)
        assert not running.thread.is_alive(), "the attempt noticed and stopped"
    job = lab.job(long_job)
    assert (job.state, job.lease_token) == ("running", "another attempt")
    assert lab.head(world.model) is None


def test_a_job_over_its_time_limit_fails_and_says_so(lab: Lab, long_job: str) -> None:
    lab.with_settings(job_time_limit_seconds=0.5).run(long_job)
    job = lab.job(long_job)
    assert (job.state, job.reason) == ("failed", "the time limit of 0.5 seconds was reached")
    assert job.failure is not None
    assert job.failure["kind"] == "time-limit"


def test_a_damaged_base_checkpoint_fails_job_and_request_with_the_reason(
    lab: Lab, trained: World
) -> None:
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    with lab.sessions() as session:
        head = session.get_one(Checkpoint, lab.head(trained.model))
    (lab.folder / "objects" / head.object_key).write_bytes(b"not what was stored")
    lab.runner.run(lab.job_of(request).id)
    with lab.sessions() as session:
        found = session.get_one(Request, request)
        assert (found.state, found.reason) == ("failed", "a stored object is damaged or missing")
    assert head.object_key in str(lab.job_of(request).reason), "the model's owner is told which"
    assert lab.head(trained.model) == head.id


def test_a_failed_request_may_be_made_again(lab: Lab, trained: World) -> None:
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    lease = lab.claim(lab.job_of(request).id)
    with lab.sessions.begin() as session:
        jobs.fail(session, lease, jobs.Failure("refused", "for the test"))
    again = lab.request(trained.first_owner, trained.model, [trained.first])
    lab.runner.run(lab.job_of(again).id)
    assert lab.job_of(again).state == "succeeded"


def test_training_that_was_queued_before_a_request_does_not_bring_forgotten_data_back(
    lab: Lab, trained: World
) -> None:
    early = lab.pretraining(trained.model_owner, trained.model, trained.training_data)
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    lab.runner.run(lab.job_of(request).id)
    clean = lab.head(trained.model)
    lab.runner.run(early)
    assert lab.job(early).state == "failed"
    assert trained.first in str(lab.job(early).reason)
    assert lab.head(trained.model) == clean


def test_removals_that_wait_for_promotion_build_on_each_other(lab: Lab, trained: World) -> None:
    with lab.sessions.begin() as session:
        models.change_policy(session, trained.model_owner, trained.model, {"promotion": "manual"})
    start = lab.head(trained.model)
    for owner, dataset in (
        (trained.first_owner, trained.first),
        (trained.second_owner, trained.second),
    ):
        job = lab.job_of(lab.request(owner, trained.model, [dataset]))
        lab.runner.run(job.id)
    last = lab.job(job.id).result_checkpoint_id
    assert lab.head(trained.model) == start
    with lab.sessions.begin() as session:
        result = session.get_one(Checkpoint, last)
        assert result.forgotten == sorted([trained.first, trained.second])
        checkpoints.promote(session, trained.model_owner, str(last))
    with lab.sessions.begin() as session, pytest.raises(Conflict, match="forgotten on request"):
        checkpoints.promote(session, trained.model_owner, str(start))


def test_nothing_is_promoted_while_a_job_of_the_model_runs(lab: Lab, trained: World) -> None:
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    lab.claim(lab.job_of(request).id)
    with lab.sessions.begin() as session, pytest.raises(Conflict, match="is running"):
        checkpoints.promote(session, trained.model_owner, str(lab.head(trained.model)))


def test_a_grant_withdrawn_while_training_waits_ends_the_job(lab: Lab, world: World) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    with lab.sessions.begin() as session:
        datasets.withdraw_grant(session, world.first_owner, world.first, world.model_owner.id)
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert job.state == "failed"
    assert str(job.reason).startswith("a data set may not be trained on any more")


def test_images_that_a_waiting_job_trains_on_are_no_control(lab: Lab, world: World) -> None:
    lab.pretraining(world.model_owner, world.model, world.training_data)
    with lab.sessions.begin() as session, pytest.raises(Invalid, match="about to train"):
        models.set_control(session, world.model_owner, world.model, world.own)


def test_a_withdrawn_grant_keeps_what_was_trained_but_forbids_new_training(
    lab: Lab, trained: World
) -> None:
    with lab.sessions.begin() as session:
        datasets.withdraw_grant(session, trained.first_owner, trained.first, trained.model_owner.id)
    request = lab.request(trained.first_owner, trained.model, [trained.first])
    lab.runner.run(lab.job_of(request).id)
    assert lab.job_of(request).state == "succeeded"
    with lab.sessions() as session, pytest.raises(NotFound, match=trained.first):
        models.check_training_data(
            session,
            trained.model_owner,
            models.owned(session, trained.model_owner, trained.model),
            [trained.first],
        )


def test_the_training_process_is_told_nothing_but_its_task(lab: Lab, long_job: str) -> None:
    with Running(lab, long_job) as running:
        task_file = Path(running.process.cmdline()[-3])
        task = json.loads(task_file.read_text())
    assert set(task) == {
        "kind", "encoder", "method", "params", "seed", "device",
        "retain_shards", "unlearn_shards", "base", "result", "snapshot", "snapshot_seconds", "recompute",
    }  # fmt: skip
    assert not task_file.exists(), "the attempt's folder is removed"
