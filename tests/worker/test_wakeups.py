"""Dispatcher, Redis and a Celery worker process: wake-ups that are lost, repeated or late."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_client
from sqlalchemy import Engine
from tests.worker.lab import Lab, World, eventually, images, worker_process

from expunge.embedded.redis import Redis
from expunge.registry import datasets, fleet, waiting
from expunge.registry.tables import Dataset, JobKind, Role, Worker
from expunge.worker.dispatcher import Dispatcher
from expunge.worker.wakeups import QUEUES, ROLES, make_celery, wake


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    with Redis(tmp_path / "redis").running() as (url, _):
        yield url


def flush(redis_url: str) -> int:
    """Empty Redis and return how many keys it held."""
    with redis_client.Redis(unix_socket_path=redis_url.removeprefix("redis+socket://")) as client:
        held: int = client.dbsize()
        client.flushall()
    return held


def start_sealing(lab: Lab) -> tuple[str, str]:
    owner = lab.party("owner", Role.DATA_OWNER)
    dataset_id = lab.dataset(owner, "photos", [images("a", 3, 0)])
    with lab.sessions.begin() as session:
        _, job = datasets.start_sealing(session, owner, dataset_id)
    assert job is not None
    return dataset_id, job.id


def test_a_lost_wakeup_is_sent_again_and_a_worker_process_does_the_job(
    lab: Lab, engine: Engine, redis_url: str, tmp_path: Path
) -> None:
    dataset_id, job_id = start_sealing(lab)
    settings = lab.settings.model_copy(update={"redis_url": redis_url})
    Dispatcher(settings, engine, lab.store).step()
    assert lab.job(job_id).published_at is not None
    assert flush(redis_url) > 0, "the wake-up is gone"
    log = tmp_path / "worker.log"
    with (
        worker_process("interactive", settings, redis_url, log),
        worker_process("dispatch", settings, redis_url, tmp_path / "dispatch.log"),
    ):
        eventually(lambda: lab.job(job_id).state == "succeeded", "the data set is sealed")
        for _ in range(3):
            wake(make_celery(settings), JobKind.SEAL)
        second, second_job = sealing_of_another(lab)
        eventually(lambda: lab.job(second_job).state == "succeeded", "the second one too")
    with lab.sessions() as session:
        assert session.get_one(Dataset, dataset_id).state == "sealed"
        assert session.get_one(Dataset, second).state == "sealed"
    assert lab.job(job_id).attempt == 1, "repeated wake-ups changed nothing"


def sealing_of_another(lab: Lab) -> tuple[str, str]:
    owner = lab.party("another owner", Role.DATA_OWNER)
    dataset_id = lab.dataset(owner, "more photos", [images("b", 3, 1)])
    with lab.sessions.begin() as session:
        _, job = datasets.start_sealing(session, owner, dataset_id)
    assert job is not None
    return dataset_id, job.id


def test_while_redis_is_away_jobs_stay_unannounced_and_are_not_lost(
    lab: Lab, engine: Engine, tmp_path: Path
) -> None:
    _, job_id = start_sealing(lab)
    nobody = f"redis+socket://{tmp_path}/nobody.sock"
    dispatcher = Dispatcher(
        lab.settings.model_copy(update={"redis_url": nobody}), engine, lab.store
    )
    with pytest.raises(Exception, match=r"nobody\.sock"):
        dispatcher.step()
    assert lab.job(job_id).published_at is None
    assert lab.job(job_id).state == "queued"


def test_the_dispatcher_takes_back_a_silent_job_and_fails_it_after_its_attempts(
    lab: Lab, engine: Engine, redis_url: str, world: World
) -> None:
    settings = lab.settings.model_copy(update={"redis_url": redis_url, "max_attempts": 2})
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    for attempt in (1, 2):
        lease = waiting.claim(lab.sessions, job_id, worker="tester", lease_seconds=0)
        assert lease is not None
        assert lease.attempt == attempt
        Dispatcher(settings, engine, lab.store).step()
    job = lab.job(job_id)
    assert job.state == "failed"
    assert "fell silent; 2 attempts got no further" in str(job.reason)
    assert job.lease_token is None


def test_a_worker_says_that_it_is_there_until_it_has_ended(
    lab: Lab, redis_url: str, tmp_path: Path
) -> None:
    settings = lab.settings.model_copy(update={"worker_labels": ("zone-3",)})

    def present() -> list[Worker]:
        with lab.sessions() as session:
            return list(fleet.workers(session))

    with worker_process("train", settings, redis_url, tmp_path / "worker.log"):
        (worker,) = eventually(present, "the worker has entered itself")
        assert worker.kinds == ["pretrain", "unlearn", "compare"]
        assert (worker.device, worker.labels) == ("cpu", ["cpu", "zone-3"])
        name, _, host = worker.name.partition("@")
        assert (name.partition(".")[0], host) == (f"train-{worker.pid}", worker.host)
    assert not present()


def test_celery_only_wakes_and_keeps_nothing(lab: Lab) -> None:
    """Taken once, one at a time, no results: what the database says alone counts."""
    app = make_celery(lab.settings)
    assert app.conf.task_acks_late is False
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.task_ignore_result is True
    assert app.conf.result_backend is None
    assert app.conf.worker_enable_remote_control is False
    # Acknowledged before the work begins, a message cannot outlive the visibility timeout.
    assert app.conf.task_acks_on_failure_or_timeout is True
    assert app.conf.task_reject_on_worker_lost is None
    queues = {QUEUES[kind] for kind in JobKind}
    assert queues == {queue for role in ROLES.values() for queue in role}


def test_without_redis_the_interactive_worker_hears_of_its_work_all_the_same(
    lab: Lab, tmp_path: Path
) -> None:
    _, job_id = start_sealing(lab)
    nobody = f"redis+socket://{tmp_path}/nobody.sock"
    # So rarely does it look by itself that the second job can only have been heard of.
    settings = lab.settings.model_copy(update={"republish_seconds": 3600})
    with worker_process("interactive", settings, nobody, tmp_path / "worker.log"):
        eventually(lambda: lab.job(job_id).state == "succeeded", "the data set is sealed")
        _, second = sealing_of_another(lab)
        eventually(lambda: lab.job(second).state == "succeeded", "the second one too")
