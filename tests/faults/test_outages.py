"""What everything leans on is away for a while: api, Redis, PostgreSQL, object store, disk. Work waits and goes on."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from tests.faults.injuries import flush_redis, kill_backend
from tests.faults.proxy import Mode, Proxy
from tests.faults.rig import REPUBLISH_SECONDS, Rig
from tests.faults.users import Cast, User

LATE_SECONDS = 2.0
"""A lost wake-up may cost the interval at which workers look by themselves, and this."""


@pytest.fixture
def unapproved(rig: Rig, cast: Cast, weights: Path) -> Iterator[str]:
    """A model whose owner has yet to approve of requests, so that they may be withdrawn in the end."""
    model_id = cast.model(weights=weights, approval="manual")
    yield model_id
    for request_id in requests_to(rig, model_id):
        cast.owners[0].call("POST", f"/requests/{request_id}/cancel")


def requests_to(rig: Rig, model_id: str) -> list[str]:
    rows = rig.rows("SELECT id FROM requests WHERE model_id = :id", id=model_id)
    return [row["id"] for row in rows]


@contextmanager
def asking(ask: Callable[[], str]) -> Iterator["Future[str]"]:
    """A user who asks, and goes on asking, while the block runs; has the answer after it."""
    with ThreadPoolExecutor(1) as users:
        answer = users.submit(ask)
        yield answer
        answer.result()


def ask(cast: Cast, owner: User, model_id: str) -> str:
    return cast.ask(owner, model_id, cast.sets[owner.party_id])


def test_a_request_whose_api_dies_before_it_is_accepted_is_made_once(
    rig: Rig, cast: Cast, unapproved: str
) -> None:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    lock = text("SELECT 1 FROM models WHERE id = :id FOR UPDATE")
    with rig.engine.connect() as connection:
        connection.execute(lock, {"id": unapproved})
        with asking(lambda: ask(cast, cast.owners[0], unapproved)) as answer:
            rig.eventually(lambda: rig.rows(waiting), "the request is half made")
            rig.process("api").kill()
            connection.rollback()
    assert requests_to(rig, unapproved) == [answer.result()]


def test_a_request_whose_answer_is_lost_is_made_once(rig: Rig, cast: Cast, unapproved: str) -> None:
    with Proxy(int(urlsplit(rig.stack.url).port or 0)) as api:
        user = cast.owners[0].at(api.url)
        api.set(Mode.DEAF)
        with asking(lambda: ask(cast, user, unapproved)) as answer:
            rig.eventually(lambda: api.bitten >= 2, "two answers are lost")
            api.set(Mode.PASS)
        user.close()
    assert requests_to(rig, unapproved) == [answer.result()]


def test_a_lost_wakeup_costs_no_more_than_the_workers_own_look(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    model_id = cast.model(weights=weights)
    dispatcher = rig.process("dispatch")
    dispatcher.send_signal(signal.SIGSTOP)
    try:
        assert flush_redis(rig)
        removal = cast.removal_of(model_id, seconds=0.1)
        job = rig.eventually(
            lambda: next((j for j in [rig.job(removal.job_id)] if j["attempt"]), None),
            "it is taken",
        )
    finally:
        dispatcher.send_signal(signal.SIGCONT)
    waited = (job["claimed_at"] - job["due_at"]).total_seconds()
    assert waited < REPUBLISH_SECONDS + LATE_SECONDS
    assert rig.until_ended(removal.job_id)["state"] == "succeeded"


def test_redis_is_emptied_and_killed_while_jobs_wait(rig: Rig, cast: Cast, weights: Path) -> None:
    removals = [cast.removal(weights, seconds=0.1, owner=n) for n in range(len(cast.owners))]
    assert flush_redis(rig)
    rig.process("redis").kill()
    for removal in removals:
        job = rig.until_ended(removal.job_id)
        assert (job["state"], job["attempt"]) == ("succeeded", 1)


def test_a_job_trains_on_while_postgresql_is_killed_and_recovers(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    job_id = cast.removal(weights, seconds=3).job_id
    rig.until_snapshot(job_id)
    (child,) = rig.training()
    rig.process("postgres").kill()
    assert rig.job(job_id)["attempt"] == 1
    rig.eventually(lambda: kill_backend(rig, draw=0), "somebody is connected")
    job = rig.until_ended(job_id)
    assert (job["state"], job["attempt"]) == ("succeeded", 1)
    assert not child.is_running()


def test_a_result_is_recorded_once_when_the_store_is_back(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    removal = cast.removal(weights, seconds=0.5)
    proxy = rig.proxy
    assert proxy is not None
    rig.eventually(rig.training, "the files are there and the job trains")
    with proxy.failing(Mode.REFUSE):
        rig.eventually(lambda: rig.job(removal.job_id)["state"] == "evaluating", "it is measured")
        rig.eventually(lambda: not rig.training(), "its result is to be stored")
    for mode in (Mode.CUT, Mode.UNAVAILABLE, Mode.STALL):
        bitten = proxy.bitten
        with proxy.failing(mode):
            rig.eventually(lambda bitten=bitten: proxy.bitten > bitten, f"{mode} is met")
            assert rig.job(removal.job_id)["state"] == "evaluating"
    job = rig.until_ended(removal.job_id)
    assert (job["state"], job["attempt"], job["outages"]) == ("succeeded", 1, 0)
    assert cast.head(removal.model_id) == job["result_checkpoint_id"]


def test_a_job_waits_until_the_workers_disk_has_room_and_goes_on(
    rig: Rig, cast: Cast, weights: Path
) -> None:
    disk = rig.work_disk
    if disk is None:
        pytest.skip("only root may mount the small disk that this fills")
    trained = cast.removal(weights, seconds=2)
    rig.until_snapshot(trained.job_id)
    model_id = cast.model(weights=weights)
    disk.fill()
    try:
        staged = cast.removal_of(model_id, seconds=0.1, owner=1)
        for removal in (trained, staged):
            met = partial(rig.job, removal.job_id)
            rig.eventually(lambda met=met: met()["outages"], "the job finds no room")
    finally:
        disk.free()
    for removal in (trained, staged):
        job = rig.until_ended(removal.job_id)
        assert job["state"] == "succeeded"
        assert job["failure"] is None, "a full disk is no crash"
    assert rig.job(staged.job_id)["reason"] is None
