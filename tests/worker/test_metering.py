"""Workers and dispatchers count what they did, and answer a scrape on the port of the settings."""

import logging
import re
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text
from tests.worker.lab import LONG, Lab, Running, World, eventually, images

from expunge.registry import datasets
from expunge.registry.logs import configure_logging
from expunge.worker import metering
from expunge.worker.dispatcher import Dispatcher

Change = Callable[[], float]


def watched(name: str, **labels: str) -> Change:
    """How much a metric has grown since this call."""

    def value() -> float:
        return metering.REGISTRY.get_sample_value(f"expunge_{name}", labels) or 0.0

    before = value()
    return lambda: value() - before


def test_an_attempt_is_counted_by_its_end_and_timed(lab: Lab, world: World) -> None:
    succeeded = watched("job_attempts_total", kind="seal", outcome="succeeded")
    timed = watched("job_attempt_seconds_count", kind="seal")
    lab.sealed(world.model_owner, "more", images("more", 2, 4))
    assert (succeeded(), timed()) == (1, 1)

    failed = watched("job_attempts_total", kind="pretrain", outcome="failed")
    refused = lab.pretraining(world.model_owner, world.model, world.training_data)
    with lab.sessions.begin() as session:
        session.execute(text("DELETE FROM grants"))
    lab.runner.run(refused)
    assert lab.job(refused).state == "failed"
    assert failed() == 1


def test_a_running_training_tells_its_speed_its_snapshots_and_its_lease(
    lab: Lab, world: World
) -> None:
    renewed = watched("lease_renewals_total", outcome="renewed")
    lost = watched("lease_renewals_total", outcome="lost")
    stored = watched("snapshot_store_seconds_count")
    over = watched("job_attempts_total", kind="pretrain", outcome="lease-lost")
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data, LONG)
    with Running(lab, job_id, snapshot_seconds=0.1) as running:
        speed = "expunge_training_images_per_second"
        eventually(
            lambda: metering.REGISTRY.get_sample_value(speed), "the training tells its speed"
        )
        eventually(stored, "a snapshot is stored")
        assert metering.REGISTRY.get_sample_value(
            "expunge_worker_jobs_running", {"kind": "pretrain"}
        )
        eventually(renewed, "the lease is renewed")
        with lab.sessions.begin() as session:
            session.execute(
                text("UPDATE jobs SET lease_token = 'taken' WHERE lease_token IS NOT NULL")
            )
        eventually(lambda: not running.thread.is_alive(), "the attempt ends")
    assert (lost(), over()) == (1, 1)
    assert metering.REGISTRY.get_sample_value(speed) == 0


def test_a_dispatcher_counts_leases_that_it_takes_back(lab: Lab, world: World) -> None:
    expired = watched("lease_expiries_total", kind="pretrain")
    job_id = lab.pretraining(world.model_owner, world.model, world.training_data)
    lab.claim(job_id)
    with lab.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET lease_expires_at = now()"))
    # The job is not tried again: Redis, which is not there, has nothing to be told.
    settings = lab.settings.model_copy(update={"max_attempts": 1})
    dispatcher = Dispatcher(settings, lab.sessions.kw["bind"], lab.store)
    dispatcher.step()
    assert expired() == 1
    assert metering.REGISTRY.get_sample_value("expunge_worker_contact_timestamp_seconds")
    with lab.sessions() as session:
        assert session.scalar(text("SELECT role FROM workers")) == "dispatch"

    swept = watched("objects_swept_total")
    dispatcher.tidy()
    assert swept() == 0
    kept = metering.REGISTRY.get_sample_value("expunge_objects_kept")
    assert kept == len(list(lab.store.keys()))


def test_without_an_address_nothing_listens(lab: Lab) -> None:
    assert metering.serve(lab.settings) is None


def test_an_address_that_is_taken_ends_the_process_with_the_reason(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = lab.settings.model_copy(update={"metrics_listen": address})
        with pytest.raises(SystemExit, match=re.escape(f"EXPUNGE_METRICS_LISTEN: {address}")):
            metering.serve(settings)


def test_its_port_tells_the_space_that_is_left_and_whether_the_queue_is_looked_after(
    lab: Lab,
) -> None:
    lab.settings.work_dir.mkdir()
    server = metering.serve(lab.settings.model_copy(update={"metrics_listen": "127.0.0.1:0"}))
    assert server is not None
    longest = lab.settings.lease_seconds + 2 * lab.settings.republish_seconds
    health = {}
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        told = httpx.get(f"{address}/metrics", trust_env=False).text
        for silent in (0, longest + 60):
            metering.CONTACT.set(time.time() - silent)
            health[silent] = httpx.get(f"{address}/healthz", trust_env=False).status_code
    finally:
        server.shutdown()
        server.server_close()
    assert re.search(r"^expunge_work_dir_free_bytes \d", told, re.MULTILINE)
    assert re.search(r"^process_resident_memory_bytes \d", told, re.MULTILINE)
    assert list(health.values()) == [200, 503]
    for alerted in ("lease_expiries_total{", 'job_attempts_total{kind="compare",outcome="crashed"'):
        assert f"\nexpunge_{alerted}" in told, "what first appears at one has not grown"


def test_every_log_line_of_an_attempt_names_job_attempt_and_worker(
    lab: Lab, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    with lab.sessions.begin() as session:
        _, job = datasets.start_sealing(
            session,
            world.model_owner,
            lab.dataset(world.model_owner, "logged", [images("logged", 2, 5)]),
        )
    assert job is not None
    before = logging.getLogger().handlers
    configure_logging()
    logging.getLogger().addHandler(caplog.handler)
    try:
        lab.runner.run(job.id)
    finally:
        logging.getLogger().handlers = before
    lines = [each.msg for each in caplog.records if isinstance(each.msg, dict)]
    assert [line["event"] for line in lines] == ["job started", "job succeeded"]
    named = {"job_id": job.id, "attempt": 1, "worker": lab.runner.runner.name}
    assert all(line | named == line for line in lines)
