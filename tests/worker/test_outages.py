"""Stores that are away while a job needs them: work waits, goes on, and says so when it gives up."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests.worker.lab import Hands, Lab, World, eventually

from expunge.registry.objects import DirectoryStore, StoreUnavailable
from expunge.registry.tables import Job
from expunge.worker.context import Context


class Away(DirectoryStore):
    """A directory store on a disk that can be pulled out."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pulled = threading.Event()
        self.tried = 0

    def put(self, path: Path, sha256: str, *, under: str | None = None) -> str:
        self._reach()
        return super().put(path, sha256, under=under)

    def stream(self, key: str) -> Iterator[bytes]:
        self._reach()
        return super().stream(key)

    def _reach(self) -> None:
        self.tried += 1
        if self.pulled.is_set():
            raise StoreUnavailable("the disk was pulled out")


@pytest.fixture
def away(lab: Lab) -> Away:
    return Away(lab.folder / "objects")


def hands(lab: Lab, away: Away, **changes: object) -> Hands:
    settings = lab.settings.model_copy(update=changes)
    return Hands(Context(settings, lab.sessions, away))


def test_a_short_outage_is_waited_out_without_another_attempt(
    lab: Lab, world: World, away: Away
) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    away.pulled.set()
    thread = threading.Thread(target=hands(lab, away).run, args=(job_id,))
    thread.start()
    eventually(lambda: away.tried >= 3, "the worker tries again and again")
    assert lab.job(job_id).state == "running"
    away.pulled.clear()
    thread.join(60)
    job = lab.job(job_id)
    assert (job.state, job.attempt, job.outages) == ("succeeded", 1, 0)


def test_after_its_patience_a_worker_gives_the_job_back_and_not_for_ever(
    lab: Lab, world: World, away: Away
) -> None:
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    away.pulled.set()
    worker = hands(lab, away, outage_patience_seconds=0.1, max_outages=2)
    for times in (1, 2):
        worker.run(job_id)
        job = lab.job(job_id)
        assert (job.state, job.outages, job.failure) == ("queued", times, None)
        assert job.reason == "a store could not be reached"
        assert (job.due_at - job.claimed_at).total_seconds() > 0, "with a pause"
        eventually(lambda: is_due(lab, job_id), "the pause ends")
    worker.run(job_id)
    job = lab.job(job_id)
    assert (job.state, job.reason) == ("failed", "a store could not be reached (2 times)")
    assert job.failure is not None
    assert job.failure["kind"] == "outage"


def is_due(lab: Lab, job_id: str) -> bool:
    with lab.sessions() as session:
        return bool(session.scalar(select(Job.due_at <= func.now()).where(Job.id == job_id)))
