"""Calls that stay open: so many of a key at once, none too many for good."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from tests.api.conftest import Past, User, problem_of
from tests.api.test_events import Scene, read

from expunge.api.places import Places, TooManyOpen
from expunge.registry.settings import Settings

OPEN = 3
WAITING = {"Prefer": "wait=2"}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"open_calls_per_key": OPEN})


@pytest.fixture(scope="module")
def scene(past: Past, model_owner: User, data_owner: User, other_owner: User) -> Scene:
    return Scene(past, model_owner, data_owner, other_owner)


@pytest.fixture
def watched(data_owner: User, scene: Scene) -> Iterator[httpx.Response]:
    """One of as many event streams of the data owner as it may have."""
    path = f"/requests/{scene.request}/events"
    with ExitStack() as stack:
        streams = [stack.enter_context(data_owner.http.stream("GET", path)) for _ in range(OPEN)]
        # A generator that nobody holds any more closes its stream.
        events = [read(stream.iter_lines()) for stream in streams]
        for each in events:
            assert next(each).data["state"] == "received"
        yield streams[0]


def eventually(user: User, path: str) -> None:
    """A stream is opened as soon as the service has noticed that another was closed."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with user.http.stream("GET", path) as answer:
            if answer.status_code == 200:
                return
        time.sleep(0.05)
    pytest.fail("no place becomes free")


def test_one_event_stream_too_many_is_refused_and_says_why(
    data_owner: User, other_owner: User, scene: Scene, watched: httpx.Response
) -> None:
    path = f"/requests/{scene.request}/events"
    problem = problem_of(data_owner.get(path), 429, "too-many-open-calls")
    assert (problem["allowed"], problem["open"]) == (OPEN, OPEN)
    assert "one key" in problem["detail"]
    assert data_owner.get(f"/requests/{scene.request}").status_code == 200, "nothing else is"
    with other_owner.http.stream("GET", f"/requests/{scene.other}/events") as another:
        assert another.status_code == 200, "nobody else is"
    watched.close()
    eventually(data_owner, path)


def test_nor_does_a_call_wait_then(data_owner: User, scene: Scene, watched: httpx.Response) -> None:
    body = {"request_id": scene.request}
    refused = data_owner.post("/audit", body, headers=WAITING)
    assert int(refused.headers["retry-after"]) > 0
    problem_of(refused, 429, "too-many-open-calls")
    assert data_owner.post("/audit", body).status_code != 429, "without waiting it is taken"
    assert watched.status_code == 200


def test_nor_is_an_upload_checked(data_owner: User, scene: Scene, watched: httpx.Response) -> None:
    dataset = data_owner.open_dataset()
    path = f"/datasets/{dataset}/uploads/upl_{'0' * 32}/complete"
    problem_of(data_owner.post(path), 429, "too-many-open-calls")
    watched.close()
    eventually(data_owner, f"/requests/{scene.request}/events")


def test_a_call_that_fails_gives_its_place_back(data_owner: User) -> None:
    for _ in range(2 * OPEN):
        answer = data_owner.post("/audit", {"request_id": f"req_{'0' * 32}"}, headers=WAITING)
        problem_of(answer, 404, "not-found")


def test_places_are_counted_by_key_under_any_number_of_threads() -> None:
    places, most, guard = Places(5), [0, 0], threading.Lock()
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            try:
                with places.one("key"):
                    with guard:
                        most[0] += 1
                        most[1] = max(most)
                    with guard:
                        most[0] -= 1
            except TooManyOpen:
                pass

    threads = [threading.Thread(target=call) for _ in range(20)]
    for each in threads:
        each.start()
    time.sleep(0.5)
    over.set()
    for each in threads:
        each.join()
    assert 1 <= most[1] <= 5
    with ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(places.one("key"))
        with pytest.raises(TooManyOpen):
            stack.enter_context(places.one("key"))
        stack.enter_context(places.one("another"))


def test_a_limit_of_zero_is_none() -> None:
    places = Places(0)
    with ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(places.one("key"))
