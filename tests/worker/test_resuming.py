"""Training jobs whose attempts end before they are done: crashed, stopped, cancelled, over their limit."""

import os
import signal

import psutil
import pytest
from sqlalchemy import func, select
from tests.worker.lab import Lab, Running, World, eventually

from expunge.registry import jobs, models
from expunge.registry.tables import Checkpoint, Job, LogRow, Request
from expunge.registry.transitions import StateChanged
from expunge.unlearning.catalog import PretrainParams

LASTING = PretrainParams(epochs=60, batch_size=16)
"""Some seconds of training."""
OFTEN = 0.05
"""Seconds between two snapshots."""


@pytest.fixture
def job_id(lab: Lab, world: World) -> str:
    return lab.pretraining(world.model_owner, world.model, world.training_data, LASTING)


def digest_of(lab: Lab, job_id: str) -> str:
    job = lab.job(job_id)
    assert job.state == "succeeded", job.reason
    with lab.sessions() as session:
        return session.get_one(Checkpoint, job.result_checkpoint_id).digest


def undisturbed(lab: Lab, world: World) -> str:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data, LASTING)
    lab.runner.run(job_id)
    return digest_of(lab, job_id)


def events(lab: Lab, job_id: str) -> list[str]:
    with lab.sessions() as session:
        query = select(LogRow.event).where(LogRow.subject_id == job_id).order_by(LogRow.seq)
        return list(session.scalars(query))


def stored_snapshots(lab: Lab) -> list[str]:
    return [key for key in lab.store.keys() if key.startswith("snapshots/")]  # noqa: SIM118


def kill_once_stored(lab: Lab, job_id: str, after: int = 0) -> int:
    """Kill the training process once a snapshot after that step is stored; the step of the last one."""
    with Running(lab, job_id, snapshot_seconds=OFTEN) as running:
        eventually(lambda: (lab.job(job_id).snapshot_step or 0) > after, "a snapshot is stored")
        running.process.send_signal(signal.SIGKILL)
        running.thread.join(30)
    step = lab.job(job_id).snapshot_step
    assert step is not None
    return step


def wait_until_due(lab: Lab, job_id: str) -> None:
    def due() -> bool:
        with lab.sessions() as session:
            return bool(session.scalar(select(Job.due_at <= func.now()).where(Job.id == job_id)))

    eventually(due, "the pause before the next attempt ends")


def test_a_killed_run_goes_on_from_its_snapshot_to_the_same_weights(
    lab: Lab, world: World, job_id: str
) -> None:
    step = kill_once_stored(lab, job_id)
    job = lab.job(job_id)
    assert (job.state, job.lease_token) == ("queued", None)
    assert job.failure is not None
    assert (job.failure["kind"], job.failure["step"]) == ("signal", step)
    assert "SIGKILL" in str(job.reason)
    assert len(stored_snapshots(lab)) == 1
    wait_until_due(lab, job_id)
    lab.runner.run(job_id)
    digest = digest_of(lab, job_id)
    job = lab.job(job_id)
    assert (job.attempt, job.snapshot_key) == (2, None)
    assert stored_snapshots(lab) == [], "nothing of the run is left behind"
    assert events(lab, job_id) == [
        *("queued", "running", "queued"),
        *("running", "resumed", "succeeded"),
    ]
    assert digest == undisturbed(lab, world)


def test_a_stopped_worker_gives_its_job_back_with_a_fresh_snapshot(lab: Lab, job_id: str) -> None:
    with Running(lab, job_id) as running:
        process = running.process
        assert lab.job(job_id).snapshot_step is None, "none is due yet"
        running.context.stopping.set()
        running.thread.join(30)
        assert not process.is_running()
    job = lab.job(job_id)
    assert (job.state, job.published_at, job.failure) == ("queued", None, None)
    assert job.snapshot_step is not None
    lab.runner.run(job_id)
    assert lab.job(job_id).state == "succeeded"
    assert "resumed" in events(lab, job_id)


def test_a_run_that_crashes_at_the_same_place_fails_with_its_last_words(
    lab: Lab, job_id: str
) -> None:
    for attempt in (1, 2, 3):
        wait_until_due(lab, job_id)
        with Running(lab, job_id) as running:
            running.process.send_signal(signal.SIGKILL)
            running.thread.join(30)
        assert lab.job(job_id).attempt == attempt
    job = lab.job(job_id)
    assert job.state == "failed"
    assert "SIGKILL; 3 attempts got no further" in str(job.reason)
    assert job.failure is not None
    assert (job.failure["kind"], job.failure["attempt"]) == ("signal", 3)
    assert job.result_checkpoint_id is None


def test_crashes_that_get_further_each_time_are_not_counted_together(
    lab: Lab, world: World
) -> None:
    long = PretrainParams(epochs=10_000, batch_size=16)
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data, long)
    step = 0
    for _ in range(3):
        wait_until_due(lab, job_id)
        step = kill_once_stored(lab, job_id, after=step)
    job = lab.job(job_id)
    assert (job.state, job.attempt) == ("queued", 3)
    assert job.failure is not None
    assert job.failure["crashes"] == 1


def test_a_damaged_snapshot_is_dropped_and_the_run_starts_again(lab: Lab, job_id: str) -> None:
    kill_once_stored(lab, job_id)
    (key,) = stored_snapshots(lab)
    path = lab.folder / "objects" / key
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    wait_until_due(lab, job_id)
    lab.runner.run(job_id)
    assert "snapshot-dropped" in events(lab, job_id)
    assert lab.job(job_id).state == "succeeded"
    assert stored_snapshots(lab) == []


def test_a_snapshot_of_another_run_is_refused_and_the_run_starts_again(
    lab: Lab, job_id: str
) -> None:
    """A head that changed between two attempts makes another run of the same job."""
    kill_once_stored(lab, job_id)
    with lab.sessions.begin() as session:
        job = session.get_one(Job, job_id)
        job.params = job.params | {"seed": 4}
    wait_until_due(lab, job_id)
    lab.runner.run(job_id)
    assert lab.job(job_id).state == "succeeded"
    assert "snapshot-dropped" in events(lab, job_id)


def test_a_cancelled_job_ends_at_once_and_leaves_nothing(lab: Lab, trained: World) -> None:
    head = lab.head(trained.model)
    request = lab.request(trained.first_owner, trained.model, [trained.first], epochs=1000)
    job = lab.job_of(request)
    with Running(lab, job.id, snapshot_seconds=OFTEN) as running:
        process = running.process
        eventually(lambda: lab.job(job.id).snapshot_step, "a snapshot is stored")
        with lab.sessions.begin() as session:
            row = session.get_one(Job, job.id)
            jobs.cancel(session, row, actor=trained.model_owner.id, reason="for the test")
        psutil.wait_procs([process], timeout=30)
        assert not process.is_running()
        running.thread.join(30)
    assert (lab.job(job.id).state, lab.job(job.id).reason) == ("cancelled", "for the test")
    with lab.sessions() as session:
        assert session.get_one(Request, request).state == "cancelled"
    assert lab.head(trained.model) == head
    assert stored_snapshots(lab) == []
    with lab.sessions.begin() as session, pytest.raises(StateChanged):
        jobs.cancel(session, session.get_one(Job, job.id), actor="test", reason="again")


def test_time_counts_over_all_attempts(lab: Lab, world: World, job_id: str) -> None:
    kill_once_stored(lab, job_id)
    used = lab.job(job_id).seconds_used
    assert used > 0
    with lab.sessions.begin() as session:
        models.change_policy(
            session, world.model_owner, world.model, {"time_limit_seconds": used + 0.01}
        )
    wait_until_due(lab, job_id)
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert job.state == "failed"
    assert job.failure is not None
    assert job.failure["kind"] == "time-limit"
    assert stored_snapshots(lab) == []


def test_each_attempt_says_who_and_why(lab: Lab, job_id: str) -> None:
    kill_once_stored(lab, job_id)
    with lab.sessions() as session:
        rows = session.scalars(
            select(LogRow).where(LogRow.subject_id == job_id).order_by(LogRow.seq)
        ).all()
    queued, running, again = (row.detail for row in rows)
    assert queued == {"kind": "pretrain"}
    assert running["worker"].startswith(f"worker-{os.getpid()}.")
    assert (running["attempt"], again["attempt"]) == (1, 1)
    assert again["worker"] == running["worker"]
    assert (again["kind"], again["reason"]) == (
        "signal",
        "the training process was ended by SIGKILL",
    )


def test_the_folder_of_an_attempt_is_removed(lab: Lab, job_id: str) -> None:
    kill_once_stored(lab, job_id)
    left = [path.name for path in lab.settings.work_dir.rglob("*") if job_id in str(path)]
    assert left == []
