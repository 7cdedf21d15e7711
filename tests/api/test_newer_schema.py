"""The api and a worker of this version go on beside an upgrade: the schema is newer, and only adds to theirs."""

import time

import httpx
import pytest
from sqlalchemy import Engine, select, update
from tests.api.conftest import Past, User, images
from tests.api.test_fleet import enter
from tests.registry.newer import EXPANDING, upgraded_with

from expunge.registry import waiting
from expunge.registry.lifecycles import JobState
from expunge.registry.migration import fits, is_current
from expunge.registry.settings import Settings
from expunge.registry.tables import Job, JobKind, Shard
from expunge.registry.vitals import Vitals
from expunge.worker.running import Runner

WAIT_SECONDS = 60
UNFINISHED = ("queued", "running", "evaluating")


@pytest.fixture(scope="module")
def settings(
    settings: Settings, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    """Those of a database whose revision this version does not know."""
    upgraded_with(engine, EXPANDING, tmp_path_factory.mktemp("versions"))
    return settings


def test_it_is_ready(anonymous: httpx.Client, engine: Engine) -> None:
    assert (is_current(engine), fits(engine)) == (False, True)
    answer = anonymous.get("/readyz")
    assert answer.json()["checks"]["migrations"] == "ok", answer.text


def test_a_data_set_is_sealed_and_a_model_is_trained(model_owner: User, worker: Runner) -> None:
    assert worker
    dataset_id = model_owner.sealed(images("own", 20))
    model_id = model_owner.model()
    body = {"dataset_ids": [dataset_id], "params": {"epochs": 1, "batch_size": 16}}
    answer = model_owner.post(f"/models/{model_id}/pretrain", body)
    assert answer.status_code == 202, answer.text
    path = f"/jobs/{answer.json()['id']}"
    deadline = time.monotonic() + WAIT_SECONDS
    while (job := model_owner.get(path).json())["state"] in UNFINISHED:
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
    assert job["state"] == "succeeded", job
    assert model_owner.get(f"/models/{model_id}").json()["head_checkpoint_id"]


def test_objects_of_a_deleted_data_set_are_left_to_the_version_that_knows_what_else_names_them(
    past: Past, data_owner: User
) -> None:
    dataset_id = data_owner.dataset(images("deleted", 3))
    with past.sessions() as session:
        keys = session.scalars(select(Shard.object_key).where(Shard.dataset_id == dataset_id)).all()
    answer = data_owner.http.delete(f"/datasets/{dataset_id}")
    assert (answer.status_code, answer.json()["state"]) == (202, "deleting")
    assert keys
    assert set(keys) <= set(past.store.keys())
    with past.sessions() as session:
        assert (
            session.scalar(select(Shard.object_key).where(Shard.dataset_id == dataset_id)) is None
        )


def test_operators_see_newer_workers_at_jobs_of_a_kind_that_is_unknown_here(
    past: Past, model_owner: User, operator: User
) -> None:
    with past.sessions.begin() as session:
        # Running before this version's worker can see it.
        job = waiting.enqueue(
            session, JobKind.PRETRAIN, actor="test", owner_id=model_owner.id, params={}
        )
        job.kind, job.state, job.worker = "dream", JobState.RUNNING, "newer"
        job.lease_token = "newer's"
        started = job.id
    enter(past, "newer", kinds=["pretrain", "dream"])
    try:
        found = operator.get("/workers")
        assert found.status_code == 200, found.text
        (newer,) = (each for each in found.json()["workers"] if each["name"] == "newer")
        assert (newer["kinds"], newer["jobs"][0]["kind"]) == (["pretrain", "dream"], "dream")
        assert "dream" not in {each["kind"] for each in found.json()["queues"]}
        up, *rest = Vitals(past.sessions).collect()
        assert up.samples[0].value == 1
        assert rest
    finally:
        with past.sessions.begin() as session:
            session.execute(update(Job).where(Job.id == started).values(kind="pretrain"))
