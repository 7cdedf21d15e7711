"""A worker that meets errors nobody foresaw: it goes on, and neither hangs nor lets its lease run out."""

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.orm import Session
from tests.worker.lab import Lab, World, eventually

from expunge.embedded.redis import Redis
from expunge.evidence.manifest import code, revision
from expunge.registry import jobs
from expunge.registry.tables import JobKind
from expunge.worker.context import Context
from expunge.worker.leases import kept_alive
from expunge.worker.running import Runner
from expunge.worker.wakeups import make_celery, wake

HUNG_SECONDS = 15
"""A call that takes longer hangs."""


@pytest.fixture
def runner(lab: Lab) -> Iterator[Runner]:
    """Runs in a thread of the test."""
    settings = lab.settings.model_copy(update={"republish_seconds": 0.2})
    context = Context(settings, lab.sessions, lab.store)
    found = Runner(context, list(JobKind))
    thread = threading.Thread(target=found.run)
    thread.start()
    yield found
    context.stopping.set()
    found.wake()
    thread.join(30)
    assert not thread.is_alive()


def test_a_worker_tells_the_revision_that_it_started_with(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision.cache_clear()
    monkeypatch.setenv("EXPUNGE_REVISION", "v1")
    Runner(Context(lab.settings, lab.sessions, lab.store), [])
    monkeypatch.setenv("EXPUNGE_REVISION", "v2")
    told = code()
    revision.cache_clear()
    assert told.endswith("revision v1")


def test_an_unforeseen_error_does_not_end_the_worker(
    lab: Lab, runner: Runner, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    """As when the tables are not there yet, or the database has become read-only."""
    failed = threading.Event()
    work_off = runner.work_off

    def stumble() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("for the test")
        work_off()

    monkeypatch.setattr(runner, "work_off", stumble)
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    eventually(lambda: lab.job(job_id).state == "succeeded", "the worker goes on")
    assert failed.is_set()


def test_a_wake_up_returns_while_the_worker_stops(lab: Lab) -> None:
    context = Context(lab.settings, lab.sessions, lab.store)
    runner = Runner(context, list(JobKind))
    context.stopping.set()
    runner.run()
    started = time.monotonic()
    runner.wake_and_wait()
    assert time.monotonic() - started < HUNG_SECONDS


def test_a_worker_that_starts_again_with_the_same_process_id_has_another_name(lab: Lab) -> None:
    """As in a container: until its old lease runs out, it must not seem to do two jobs."""
    context = Context(lab.settings, lab.sessions, lab.store)
    assert len({Runner(context, [], "train").name for _ in range(4)}) > 1


def test_heartbeats_go_on_after_an_error(
    lab: Lab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lab.claim(lab.pretraining(world.model_owner, world.model, world.training_data))
    beats = []
    beat = jobs.heartbeat

    def stumble(session: Session, *args: object, **values: object) -> None:
        beats.append(time.monotonic())
        if len(beats) == 1:
            raise ValueError("for the test")
        beat(session, *args, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "heartbeat", stumble)
    with kept_alive(lab.context, lease) as held:
        eventually(lambda: len(beats) >= 3, "they go on")
        held.check()


def test_a_redis_that_hangs_does_not_hold_up_the_dispatcher(lab: Lab, tmp_path: Path) -> None:
    with Redis(tmp_path / "redis").running() as (url, server):
        app = make_celery(lab.settings.model_copy(update={"redis_url": url}))
        wake(app, JobKind.SEAL)
        process = psutil.Process(server.pid)
        process.send_signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(BrokerError):
                wake(app, JobKind.SEAL)
            assert time.monotonic() - started < HUNG_SECONDS
        finally:
            process.send_signal(signal.SIGCONT)
