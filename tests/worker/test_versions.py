"""What only a newer version understands is left to it: a job is given back, a schema is not worked on."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text, update
from tests.worker.lab import SHORT, Lab, World, images

from expunge.registry.migration import SchemaUnfit, newest
from expunge.registry.record import sealing
from expunge.registry.tables import Job, JobKind, Role
from expunge.worker.context import Context
from expunge.worker.dispatcher import Dispatcher
from expunge.worker.running import Runner
from expunge.worker.sealer import Sealer

END_SECONDS = 60


@pytest.mark.parametrize(
    "change",
    [{"params": {"novelty": 1}}, {"method": "from_next_year", "params": {"epochs": 1}}],
    ids=["parameter", "method"],
)
def test_a_training_that_asks_for_what_is_unknown_waits_for_a_newer_worker(
    lab: Lab, change: dict[str, Any]
) -> None:
    owner = lab.party("model owner", Role.MODEL_OWNER)
    model = lab.model(owner)
    job_id = lab.pretraining(owner, model, [lab.sealed(owner, "own", images("own", 20, 0))], SHORT)
    params = lab.job(job_id).params
    asked = params | change | {"params": params["params"] | change["params"]}
    with lab.sessions.begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(params=asked))
    lab.runner.run(job_id)
    job = lab.job(job_id)
    assert (job.state, job.attempt, job.outages, job.failure) == ("queued", 1, 1, None)
    assert job.reason == "its worker is older than what made the job"


@contextmanager
def newer_schema(lab: Lab, *, oldest: str) -> Iterator[None]:
    """The database says that its schema is a later one, on which programs from this revision on can run."""

    def say(revision: str | None, oldest: str | None) -> None:
        with lab.sessions.begin() as session:
            session.execute(text("UPDATE alembic_version SET version_num = :id"), {"id": revision})
            session.execute(text(f"COMMENT ON TABLE alembic_version IS '{oldest}'"))

    say("9999", oldest)
    try:
        yield
    finally:
        say(newest(), newest())


def test_a_worker_takes_no_job_while_the_schema_is_not_for_it(lab: Lab, world: World) -> None:
    context = Context(lab.settings, lab.sessions, lab.store)
    runner = Runner(context, list(JobKind))
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data, SHORT)
    thread = threading.Thread(target=runner.run)
    with newer_schema(lab, oldest="9999"):
        thread.start()
        runner.wake_and_wait()
        assert lab.job(job_id).state == "queued"
    runner.wake_and_wait()
    context.stopping.set()
    runner.wake()
    thread.join(END_SECONDS)
    assert lab.job(job_id).state == "succeeded"


def test_objects_are_left_to_the_version_that_knows_all_that_names_them(lab: Lab) -> None:
    stray = lab.folder / "objects" / "sha256" / "00" / ("0" * 64)
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"")
    settings = lab.settings.model_copy(update={"object_grace_seconds": 0})
    dispatcher = Dispatcher(settings, lab.sessions.kw["bind"], lab.store)
    with newer_schema(lab, oldest=str(newest())):
        dispatcher.tidy()
        assert stray.exists()
    dispatcher.tidy()
    assert not stray.exists()


def test_a_schema_that_is_not_for_it_is_neither_sealed_nor_tidied(lab: Lab) -> None:
    lab.party("somebody", Role.DATA_OWNER)
    sealer = Sealer(lab.settings, lab.sessions)
    dispatcher = Dispatcher(lab.settings, lab.sessions.kw["bind"], lab.store)
    with newer_schema(lab, oldest="9999"):
        for work in (sealer.step, dispatcher.tidy):
            with pytest.raises(SchemaUnfit):
                work()
        with lab.sessions() as session:
            assert sealing.is_due(session), "what is to be sealed waits for who knows how"
    with newer_schema(lab, oldest=str(newest())):
        assert sealer.step() > 0
