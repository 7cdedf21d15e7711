"""Jobs that run out of memory: the next attempt needs less, the one after that is the last."""

import os
import resource
import threading
from typing import Any

import psutil
from sqlalchemy import select
from tests.worker.lab import ENCODER, Lab, World, eventually
from tests.worker.test_training_process import ADDRESS_SPACE_BYTES

from expunge.registry import jobs
from expunge.registry.jobs import Failure
from expunge.registry.tables import Job, JobKind, LogRow
from expunge.unlearning.catalog import MoCo
from expunge.worker.task import TrainingTask
from expunge.worker.watching import JobCrashed, final

OUT_OF_MEMORY = Failure("out-of-memory", "the training process ran out of memory", "CUDA's words")
OTHERWISE = Failure("signal", "the training process was ended by SIGSEGV")
GREEDY = ENCODER.model_copy(update={"objective": MoCo(projector_dim=4096, queue_size=1_048_576)})
"""Its queue alone has 16 GiB."""


def crash(lab: Lab, job_id: str, failure: Failure) -> None:
    """Claim the job and end its attempt like this."""
    lease = lab.claim(job_id)
    with lab.sessions.begin() as session:
        jobs.retry(session, lease, failure, max_attempts=9, retry_seconds=1e-9)


def logged_memory(lab: Lab, job_id: str) -> list[str | None]:
    """What each return to the queue says of memory."""
    with lab.sessions() as session:
        wanted = select(LogRow).where(LogRow.subject_id == job_id, LogRow.event == "queued")
        rows = session.scalars(wanted.order_by(LogRow.seq)).all()
        return [row.detail.get("memory") for row in rows]


def test_after_running_out_of_memory_a_job_makes_do_with_less(lab: Lab, world: World) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    for failure in (OUT_OF_MEMORY, OTHERWISE):
        crash(lab, job_id, failure)
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert job.state == "succeeded", job.reason
    assert job.metrics is not None
    assert job.metrics["memory"] == "recompute"
    assert logged_memory(lab, job_id) == [None, "recompute", "recompute"]


def test_other_crashes_change_nothing_about_memory(lab: Lab, world: World) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    crash(lab, job_id, OTHERWISE)
    assert not jobs.recomputes(lab.job(job_id))
    assert logged_memory(lab, job_id) == [None, None]


def training_process() -> psutil.Process | None:
    children = psutil.Process(os.getpid()).children()
    return next((c for c in children if "expunge.worker.training_process" in c.cmdline()), None)


def test_what_does_not_fit_either_way_fails_and_says_what_to_do(lab: Lab, world: World) -> None:
    model = lab.model(world.model_owner, GREEDY, name="greedy")
    job_id = lab.pretraining(world.model_owner, model, world.training_data)
    crash(lab, job_id, OUT_OF_MEMORY)
    worker = threading.Thread(target=lab.runner.run, args=(job_id,))
    worker.start()
    try:
        child = eventually(training_process, "the training process starts")
        resource.prlimit(child.pid, resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES,) * 2)
    finally:
        worker.join()
    job = lab.job(job_id)
    assert job.state == "failed"
    assert "ran out of memory, also with activations made anew" in str(job.reason)
    assert "a step of 16 samples of 16 × 16 pixels does not fit; lower batch_size" in str(
        job.reason
    )
    assert job.failure is not None
    assert job.failure["kind"] == "out-of-memory"


def test_memory_that_others_took_is_not_put_down_to_a_step_that_did_fit() -> None:
    crash = JobCrashed(OUT_OF_MEMORY)
    files: dict[str, Any] = {"retain_shards": [], "unlearn_shards": [], "base": None}
    files |= {"result": "", "snapshot": "", "snapshot_seconds": 1.0}
    task = TrainingTask(
        encoder={"image_size": 32},
        method=None,
        params={"batch_size": 64},
        seed=0,
        device="cpu",
        recompute=True,
        **files,
    )
    assert final(crash, task, {"step": 1}) is crash
    assert not isinstance(final(crash, task, None), JobCrashed)


def test_work_that_trains_nothing_has_no_other_way(lab: Lab, world: World) -> None:
    with lab.sessions() as session:
        sealing = session.scalars(select(Job).where(Job.kind == JobKind.SEAL)).first()
    assert sealing is not None
    assert not jobs.recomputes(sealing)
