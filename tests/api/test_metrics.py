"""What Prometheus is told: by whom it may be asked, calls by route, and what the database says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import text
from tests.api.conftest import Past, User, problem_of

from expunge.api import metering
from expunge.api.app import create_app
from expunge.registry.database import Sessions
from expunge.registry.objects import open_store
from expunge.registry.settings import Settings
from expunge.registry.vitals import Vitals
from expunge.worker.dispatcher import Dispatcher

TOKEN = "a-token-that-only-prometheus-has"
ID = re.compile(r"[a-z]{3}_[0-9a-f]{32}")

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(exposition: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def scraped(operator: User) -> Samples:
    answer = operator.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples_of(answer.text)


def calls(samples: Samples, method: str, route: str, status: int | str) -> float:
    labels = (("method", method), ("route", route), ("status", str(status)))
    return samples.get(("expunge_http_requests_total", labels), 0)


class Vital:
    """The database's part of a scrape, read now."""

    def __init__(self, sessions: Sessions) -> None:
        self._samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in Vitals(sessions).collect()
            for sample in metric.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples[f"expunge_{name}", tuple(sorted(labels.items()))]

    def __contains__(self, name: str) -> bool:
        return any(f"expunge_{name}" == each for each, _ in self._samples)


def test_calls_are_counted_by_route_and_never_by_id(operator: User, data_owner: User) -> None:
    before = scraped(operator)
    dataset = data_owner.open_dataset()
    for _ in range(2):
        assert data_owner.get(f"/datasets/{dataset}").status_code == 200
    assert operator.get(f"/datasets/{dataset}").status_code == 403
    after = scraped(operator)
    counted = {
        status: calls(after, "GET", "/datasets/{dataset_id}", status)
        - calls(before, "GET", "/datasets/{dataset_id}", status)
        for status in (200, 403)
    }
    assert counted == {200: 2, 403: 1}
    timed = (("method", "GET"), ("route", "/datasets/{dataset_id}"))
    assert after["expunge_http_request_seconds_count", timed] >= 3
    assert after["expunge_http_requests_in_progress", ()] >= 1, "the scrape itself"
    assert not ID.search(str(after))


def test_what_no_route_knows_is_counted_under_one_name(
    operator: User, anonymous: httpx.Client
) -> None:
    before = scraped(operator)
    for number in range(3):
        assert anonymous.get(f"/made-up-{number}").status_code == 404
        assert anonymous.request(f"MADE{number}", "/me").status_code == 405
    after = scraped(operator)
    assert calls(after, "GET", "other", 404) - calls(before, "GET", "other", 404) == 3
    assert "made-up" not in str(after)
    assert "MADE" not in str(after)


def test_a_scrape_tells_what_readiness_found(operator: User, url: str) -> None:
    assert httpx.get(f"{url}/readyz", trust_env=False).json()["status"] == "ready"
    told = scraped(operator)
    assert told["expunge_check_ok", (("check", "database"),)] == 1
    assert told["expunge_work_dir_free_bytes", ()] > 0
    assert told["expunge_database_up", ()] == 1


SHARED = """
import os
from prometheus_client import generate_latest
from expunge.api import metering
for leaving in (False, True):
    if os.fork() == 0:
        metering.CALLS.labels("GET", "/me", "200").inc(2)
        metering.SECONDS.labels("GET", "/me").observe(0.2)
        metering.IN_PROGRESS.inc()
        metering.CHECKS.labels("objects").set(leaving)
        if leaving:
            metering.leave()
        os._exit(0)
    os.wait()
print(generate_latest(metering.counted()).decode())
"""


def test_processes_that_share_a_folder_tell_their_sums(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARED],
        env=os.environ | {metering.FOLDER: str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = samples_of(done.stdout)
    assert calls(told, "GET", "/me", 200) == 4
    assert told["expunge_http_request_seconds_count", (("method", "GET"), ("route", "/me"))] == 2
    assert told["expunge_http_requests_in_progress", ()] == 1, "one of them has ended in order"
    assert told["expunge_check_ok", (("check", "objects"),)] == 0, "the worst of those that live"


@pytest.fixture
def guarded(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(
        update={"metrics_token": SecretStr(TOKEN), "work_dir": tmp_path / "work"}
    )


@pytest.mark.anyio
async def test_a_token_reads_metrics_and_nothing_else(guarded: Settings, operator: User) -> None:
    app = create_app(guarded)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await http.get("/metrics", headers=bearer)).status_code == 200
        problem_of(await http.get("/parties", headers=bearer), 401, "unauthenticated")
        for wrong in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {TOKEN}x"}):
            problem_of(await http.get("/metrics", headers=wrong), 401, "unauthenticated")
        key = {"Authorization": operator.http.headers["Authorization"]}
        assert (await http.get("/metrics", headers=key)).status_code == 200


def test_without_a_token_an_empty_one_does_not_do(anonymous: httpx.Client) -> None:
    answer = anonymous.get("/metrics", headers={"Authorization": "Bearer"})
    problem_of(answer, 401, "unauthenticated")


@pytest.mark.anyio
async def test_a_scrape_is_answered_while_the_database_is_away(tmp_path: Path) -> None:
    settings = Settings(
        database_url=f"postgresql+psycopg://nobody@/nothing?host={tmp_path}",
        object_store=(tmp_path / "objects").as_uri(),
        work_dir=tmp_path / "work",
        metrics_token=SecretStr(TOKEN),
    )
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        answer = await http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        told = samples_of(answer.text)
    assert told["expunge_database_up", ()] == 0
    assert told["expunge_check_ok", (("check", "objects"),)] == 1
    assert told["expunge_check_ok", (("check", "migrations"),)] == 0
    assert not any(name == "expunge_jobs" for name, _ in told)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def removal(past: Past, data_owner: User, model_owner: User, session_factory: Sessions) -> str:
    """A removal request whose job waits; nothing else is there."""
    with session_factory.begin() as session:
        # Without the triggers that keep the record from being changed.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("TRUNCATE jobs, requests, alerts, workers CASCADE"))
    own, dataset = past.sealed(model_owner), past.granted(data_owner, model_owner)
    model = model_owner.model()
    past.trained(model_owner, model, [own, dataset])
    asked = {"model_id": model, "dataset_ids": [dataset]}
    return str(data_owner.post("/requests", asked).json()["id"])


def test_the_queue_is_told_by_kind_with_the_age_of_what_waits(
    removal: str, session_factory: Sessions, past: Past, settings: Settings
) -> None:
    vital = Vital(session_factory)
    assert vital("jobs", kind="unlearn", state="due") == 1
    assert vital("jobs", kind="unlearn", state="running") == 0
    assert vital("jobs_unannounced") == 1
    assert vital("jobs_unserved") == 1
    assert vital("workers", role="dispatch", state="live") == 0

    with session_factory.begin() as session:
        session.execute(text("UPDATE jobs SET due_at = now() - interval '1 hour'"))
    late = Vital(session_factory)
    assert late("job_oldest_due_seconds", kind="unlearn") >= 3600
    assert late("job_oldest_unannounced_seconds") >= 3600
    assert late("job_oldest_due_seconds", kind="audit") == 0

    past.claimed(past.job_of(removal))
    vital = Vital(session_factory)
    assert vital("jobs", kind="unlearn", state="due") == 0
    assert vital("jobs", kind="unlearn", state="running") == 1
    assert vital("jobs_unannounced") == 0

    Dispatcher(settings, past.sessions.kw["bind"], open_store(settings)).step()
    assert Vital(session_factory)("workers", role="dispatch", state="live") == 1


def test_requests_are_told_by_state_with_deadline_and_exposure(
    removal: str, session_factory: Sessions, past: Past
) -> None:
    with session_factory.begin() as session:
        session.execute(
            text(
                "UPDATE requests SET created_at = now() - interval '40 days',"
                " deadline_at = now() - interval '10 days'"
            )
        )
    vital = Vital(session_factory)
    assert vital("requests", state="queued") == 1
    assert vital("requests_overdue") == 1
    assert vital("exposure_open_seconds") >= 40 * 86_400
    assert vital("request_deadline_seconds") <= -10 * 86_400
    assert vital("exposure_seconds_count") == 0

    past.unlearned(removal)
    vital = Vital(session_factory)
    assert vital("requests", state="completed") == 1
    assert vital("requests_overdue") == 0
    assert vital("exposure_open_seconds") == 0
    assert "request_deadline_seconds" not in vital
    assert vital("exposure_seconds_count") == 1
    assert vital("exposure_seconds_sum") >= 40 * 86_400


def test_the_record_tells_how_far_its_seal_lags_behind(
    session_factory: Sessions, removal: str
) -> None:
    vital = Vital(session_factory)
    assert vital("log_unsealed_rows") > 0
    assert vital("log_sealing_lag_seconds") >= 0
    assert vital("log_sealed_rows") == 0
    assert "tree_head_age_seconds" not in vital
