"""Server-sent events of requests and jobs: nothing lost, nothing twice, nothing of others, nothing blocked."""

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tests.api.conftest import Past, User
from tests.api.test_hardening import PROTECTING

from expunge.registry import checkpoints, jobs

WATCHERS = 60
"""More than the api has database connections and handler threads."""


@dataclass(frozen=True)
class Event:
    name: str
    data: dict[str, Any]
    id: str


def read(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream; comments are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields["id"])
            fields = {}


def follow(user: User, path: str, last: str | None = None) -> list[Event]:
    """All events until the stream's end."""
    headers = {} if last is None else {"Last-Event-ID": last}
    with user.http.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-cache"
        assert PROTECTING.items() <= dict(answer.headers).items()
        return list(read(answer.iter_lines()))


def progress(step: int) -> dict[str, Any]:
    return {
        "phase": "unlearn",
        "epoch": step // 10,
        "epochs": 3,
        "step": step,
        "steps": 30,
        "losses": {"retain": 1.0 / (step + 1)},
        "images_per_second": 100.0,
        "eta_seconds": 30.0 - step,
    }


class Scene:
    """A model trained on data of two owners, and a request of each in one job."""

    def __init__(self, past: Past, model_owner: User, data_owner: User, other_owner: User) -> None:
        self.past = past
        own = past.sealed(model_owner)
        mine = past.granted(data_owner, model_owner)
        self.theirs = past.granted(other_owner, model_owner)
        self.model = model_owner.model(policy={"batch_window_seconds": 0.5})
        past.trained(model_owner, self.model, [own, mine, self.theirs])
        self.request = self.ask(data_owner, mine)
        self.other = self.ask(other_owner, self.theirs)
        self.job = past.job_of(self.request)
        assert past.job_of(self.other) == self.job
        time.sleep(0.6)

    def ask(self, owner: User, dataset: str) -> str:
        body = {"model_id": self.model, "dataset_ids": [dataset]}
        return str(owner.post("/requests", body).json()["id"])

    def beat(self, lease: jobs.Lease, step: int) -> None:
        with self.past.sessions.begin() as session:
            jobs.heartbeat(session, lease, lease_seconds=60, progress=progress(step))

    def finish(self, lease: jobs.Lease) -> None:
        with self.past.sessions.begin() as session:
            checkpoints.record_unlearned(session, lease, self.past.weights(), {"seconds": 1.0})


@pytest.fixture
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    return Scene(past, model_owner, data_owner, other_owner)


def test_a_watcher_sees_states_progress_and_end_as_they_happen(
    data_owner: User, model_owner: User, scene: Scene
) -> None:
    """An owner sees nothing that would count the samples of others; the model's owner does."""
    uncounted = {"step": None, "steps": None, "images_per_second": None}
    path = f"/requests/{scene.request}/events"
    with data_owner.http.stream("GET", path) as answer:
        events = read(answer.iter_lines())
        states = [next(events).data["state"] for _ in range(3)]
        assert states == ["received", "approved", "queued"]
        lease = scene.past.claimed(scene.job)
        assert next(events).data["state"] == "running"
        for step in (3, 12):
            scene.beat(lease, step)
            seen = next(events)
            assert (seen.name, seen.data) == ("progress", progress(step) | uncounted)
            job = model_owner.get(f"/jobs/{scene.job}").json()
            assert job["progress"] == progress(step)
            request = data_owner.get(f"/requests/{scene.request}").json()
            assert request["progress"] == progress(step) | uncounted
        scene.finish(lease)
        last = list(events)
    assert [(each.name, each.data["state"]) for each in last] == [
        ("state", "completed"),
        ("end", "completed"),
    ]


def test_a_job_is_watched_by_its_models_owner(model_owner: User, scene: Scene) -> None:
    lease = scene.past.claimed(scene.job)
    scene.finish(lease)
    events = follow(model_owner, f"/jobs/{scene.job}/events")
    assert [each.data["state"] for each in events] == [
        "queued",
        "running",
        "succeeded",
        "succeeded",
    ]
    assert events[-1].name == "end"


def test_a_failure_says_why(model_owner: User, data_owner: User, scene: Scene) -> None:
    lease = scene.past.claimed(scene.job)
    with scene.past.sessions.begin() as session:
        jobs.fail(session, lease, jobs.Failure("exception", "the loss is not finite"))
    for user, path in (
        (model_owner, f"/jobs/{scene.job}/events"),
        (data_owner, f"/requests/{scene.request}/events"),
    ):
        *_, failed, end = follow(user, path)
        assert (failed.data["state"], failed.data["reason"]) == ("failed", "the loss is not finite")
        assert end.data == {"state": "failed"}


def test_resuming_after_any_event_brings_exactly_the_rest(data_owner: User, scene: Scene) -> None:
    path = f"/requests/{scene.request}/events"
    with data_owner.http.stream("GET", path) as answer:
        events = read(answer.iter_lines())
        first = list(itertools.islice(events, 3))
        lease = scene.past.claimed(scene.job)
        scene.beat(lease, 5)
        first += list(itertools.islice(events, 2))
        assert first[-1].name == "progress"
        resumed = ResumedStream(data_owner, path, first[-1].id)
        time.sleep(1)
        scene.finish(lease)
        everything = first + list(events)
    assert [each.data for each in resumed.events()] == [
        {"state": "completed", "reason": None, "at": everything[-2].data["at"]},
        {"state": "completed"},
    ]
    states = [each for each in everything if each.name != "progress"]
    for position, event in enumerate(states[:-1]):
        rest = follow(data_owner, path, event.id)
        assert [each.data for each in rest] == [each.data for each in states[position + 1 :]]


class ResumedStream:
    """A second watcher in a thread of its own."""

    def __init__(self, user: User, path: str, last: str) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._events = self._pool.submit(follow, user, path, last)

    def events(self) -> list[Event]:
        found = self._events.result()
        self._pool.shutdown()
        return found


@pytest.mark.parametrize("last", ["", "x", "-1", "1.2.3", "9" * 30, "1; DROP TABLE log"])
def test_an_id_that_the_service_never_gave_starts_over(
    data_owner: User, scene: Scene, last: str
) -> None:
    scene.finish(scene.past.claimed(scene.job))
    states = [
        each.data["state"] for each in follow(data_owner, f"/requests/{scene.request}/events", last)
    ]
    assert states == ["received", "approved", "queued", "running", "completed", "completed"]


def test_an_owners_events_hold_nothing_of_the_job_or_of_others(
    data_owner: User, scene: Scene
) -> None:
    lease = scene.past.claimed(scene.job)
    scene.finish(lease)
    path = f"/requests/{scene.request}/events"
    text = data_owner.get(path).text
    for hidden in (scene.job, scene.theirs, scene.other, "job_", "lease", "attempt", "actor"):
        assert hidden not in text
    assert [each.id for each in follow(data_owner, path)] == ["1", "2", "3", "4", "5", "5"], (
        "ids count what the owner sees, not what happens in the service"
    )


def test_a_job_that_starts_again_is_seen_to_do_so(
    model_owner: User, data_owner: User, scene: Scene
) -> None:
    lease = scene.past.claimed(scene.job)
    scene.beat(lease, 5)
    with scene.past.sessions.begin() as session:
        jobs.release(session, lease, "its worker was stopped")
    scene.finish(scene.past.claimed(scene.job))
    events = follow(data_owner, f"/requests/{scene.request}/events")
    assert [each.data["state"] for each in events if each.name == "state"] == [
        "received",
        "approved",
        "queued",
        "running",
        "queued",
        "running",
        "completed",
    ]


def test_many_watchers_block_nobody(data_owner: User, url: str, scene: Scene) -> None:
    """Watchers hold neither a database connection nor a thread."""
    path = f"{url}/requests/{scene.request}/events"
    headers = dict(data_owner.http.headers)
    with ExitStack() as stack:
        http = stack.enter_context(
            httpx.Client(limits=httpx.Limits(max_connections=None), trust_env=False, timeout=30)
        )
        streams = [
            read(stack.enter_context(http.stream("GET", path, headers=headers)).iter_lines())
            for _ in range(WATCHERS)
        ]
        for stream in streams:
            assert next(stream).data["state"] == "received"
        for _ in range(10):
            assert data_owner.get("/me").status_code == 200
        scene.finish(scene.past.claimed(scene.job))
        for stream in streams:
            assert list(stream)[-1].name == "end"


def test_a_watcher_who_leaves_is_forgotten(
    data_owner: User, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The call is logged when it is over: the polling ends though the request goes on."""
    path = f"/requests/{scene.request}/events"
    with data_owner.http.stream("GET", path) as answer:
        next(read(answer.iter_lines()))
    deadline = time.monotonic() + 60
    while path not in [
        each.msg.get("path") for each in caplog.records if isinstance(each.msg, dict)
    ]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    scene.finish(scene.past.claimed(scene.job))


def test_a_watcher_whose_key_is_revoked_sees_no_more(
    data_owner: User, operator: User, url: str, scene: Scene
) -> None:
    issued = operator.post(f"/parties/{data_owner.id}/keys").json()
    headers = {"Authorization": f"Bearer {issued['secret']}"}
    with (
        httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http,
        http.stream("GET", f"/requests/{scene.request}/events") as answer,
    ):
        events = read(answer.iter_lines())
        assert next(events).data["state"] == "received"
        assert data_owner.http.delete(f"/keys/{issued['id']}").status_code == 204
        assert "end" not in [each.name for each in events], "it ends without one"
    scene.finish(scene.past.claimed(scene.job))


def test_waiting_ends_after_the_time_that_was_asked_for(data_owner: User, scene: Scene) -> None:
    scene.finish(scene.past.claimed(scene.job))
    started = time.monotonic()
    body = {"request_id": scene.request}
    answer = data_owner.post("/audit", body, headers={"Prefer": "respond-async, wait=1"})
    assert 1 <= time.monotonic() - started < 60
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.headers["location"] == f"/audits/{answer.json()['id']}"
