"""Calls in a minute: counted for all processes together, in each alone where Redis is away, by key and by address."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from tests.api.conftest import Cast, User, problem_of

from expunge.api.rates import FAILED, RateLimits, TooManyCalls, address_of
from expunge.embedded.redis import Redis
from expunge.registry.settings import Settings
from expunge.registry.tables import Role

READS, WRITES, FAILURES = 40, 12, 5
NOWHERE = "redis://127.0.0.1:1/0"


class Clock:
    """A time that tests set; it begins with a minute."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Redis(tmp_path_factory.mktemp("redis")).running() as (url, _):
        yield url


@pytest.fixture(scope="module")
def settings(settings: Settings, redis_url: str) -> Settings:
    return settings.model_copy(
        update={
            "redis_url": redis_url,
            "reads_per_minute": READS,
            "writes_per_minute": WRITES,
            "failed_keys_per_minute": FAILURES,
        }
    )


@pytest.fixture
def clean(redis_url: str) -> str:
    """Redis without anybody's calls."""
    path = redis_url.removeprefix("redis+socket://")
    with redis.Redis(unix_socket_path=path) as client:
        client.flushall()
    return redis_url


def spent(limits: RateLimits, kind: str = "read", who: str = "a") -> int:
    """How many calls are taken until one is refused."""
    for taken in range(10_000):
        try:
            limits.spend(kind, who)
        except TooManyCalls:
            return taken
    pytest.fail("none is refused")


class TestTogether:
    """Several processes, one Redis."""

    def test_they_take_as_many_as_the_quota_says(self, clean: str) -> None:
        processes = [RateLimits(clean, {"read": 1000}, clock=Clock()) for _ in range(3)]
        for each in processes:
            each.spend("read", "a")
        assert sum(spent(each) for each in processes) == 1000 - 3
        for each in processes:
            each.close()

    def test_callers_and_kinds_and_minutes_are_counted_apart(self, clean: str) -> None:
        clock = Clock()
        limits = RateLimits(clean, {"read": 10, "write": 3}, clock=clock)
        assert [spent(limits, *of) for of in (("read", "a"), ("read", "b"), ("write", "a"))] == [
            10,
            10,
            3,
        ]
        clock.now += 60
        assert spent(limits) == 10
        limits.close()

    def test_threads_of_a_process_take_no_more(self, clean: str) -> None:
        limits = RateLimits(clean, {"read": 500}, clock=Clock())
        taken = []
        threads = [threading.Thread(target=lambda: taken.append(spent(limits))) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert sum(taken) == 500
        limits.close()

    def test_celerys_word_for_a_database_behind_a_socket_is_understood(self, clean: str) -> None:
        databases = [f"{clean}?virtual_host={number}" for number in (0, 1)]
        processes = [RateLimits(url, {"read": 10}, clock=Clock()) for url in databases * 2]
        assert [spent(each) for each in processes] == [10, 10, 0, 0]
        for each in processes:
            each.close()

    def test_counters_end_by_themselves(self, clean: str) -> None:
        limits = RateLimits(clean, {"read": 500}, clock=Clock())
        limits.spend("read", "a")
        limits.close()
        path = clean.removeprefix("redis+socket://")
        with redis.Redis(unix_socket_path=path) as client:
            (counter,) = client.keys("*")
            assert 0 < client.ttl(counter) <= 120


class TestAlone:
    """No Redis: each process counts for itself."""

    @pytest.mark.parametrize("url", [NOWHERE, "sentinel://127.0.0.1:1"])
    def test_the_quota_holds_per_process(self, url: str) -> None:
        processes = [RateLimits(url, {"read": 30}, clock=Clock()) for _ in range(2)]
        assert [spent(each) for each in processes] == [30, 30]
        for each in processes:
            each.close()

    def test_a_redis_that_goes_away_does_not_give_the_quota_again(self, tmp_path: Path) -> None:
        server = Redis(tmp_path / "redis")
        clock = Clock()
        with server.running() as (url, _):
            limits = RateLimits(url, {"read": 100}, clock=clock)
            for _ in range(60):
                limits.spend("read", "a")
        assert spent(limits) == 40
        clock.now += 60
        assert spent(limits) == 100
        limits.close()

    def test_the_minute_before_is_over_and_a_clock_set_back_locks_nobody_out(self) -> None:
        clock = Clock()
        limits = RateLimits(NOWHERE, {"read": 20}, clock=clock)
        assert spent(limits) == 20
        clock.now -= 1
        assert spent(limits) == 0
        clock.now -= 3600
        assert spent(limits) == 20
        limits.close()

    def test_a_redis_that_never_answers_is_not_waited_for_long(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            limits = RateLimits(url, {"read": 20}, clock=Clock())
            assert spent(limits) == 20
            limits.close()

    def test_no_quota_is_no_limit(self) -> None:
        limits = RateLimits(NOWHERE, {"read": 0}, clock=Clock())
        assert [limits.spend("read", "a") for _ in range(100)] == [None] * 100
        limits.close()


class TestAddresses:
    """Whoever tries many keys waits; whose key is known does not."""

    def test_a_known_key_is_let_through_and_an_unknown_one_waits(self) -> None:
        clock = Clock()
        limits = RateLimits(NOWHERE, {FAILED: 3}, clock=clock)
        limits.meet("known")
        assert spent(limits, FAILED, "203.0.113.7") == 3
        limits.require_tries("203.0.113.7", "known")
        limits.require_tries("203.0.113.8", "unknown")
        with pytest.raises(TooManyCalls):
            limits.require_tries("203.0.113.7", "unknown")
        clock.now += 60
        limits.require_tries("203.0.113.7", "unknown")
        limits.close()

    @pytest.mark.parametrize(
        ("host", "counted"),
        [
            ("203.0.113.7", "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            (None, "local"),
            ("testclient", "testclient"),
        ],
    )
    def test_a_network_of_ipv6_is_one_caller(self, host: str | None, counted: str) -> None:
        assert address_of(host) == counted


class TestOverHttp:
    """What callers see of it."""

    def test_every_answer_says_what_is_left_and_the_refusal_when_to_go_on(self, cast: Cast) -> None:
        owner, other = cast.party(Role.DATA_OWNER), cast.party(Role.DATA_OWNER)
        first = owner.get("/me")
        assert first.headers["ratelimit-policy"] == f'"read";q={READS};w=60'
        assert first.headers["ratelimit"].startswith('"read";r=')
        refused = first
        while refused.status_code == 200:
            refused = owner.get("/me")
        problem = problem_of(refused, 429, "too-many-calls")
        assert problem["allowed"] == {"calls": READS, "seconds": 60}
        assert 0 < int(refused.headers["retry-after"]) <= 60
        written = owner.post("/datasets", {"name": "another kind of call"})
        assert written.status_code == 201
        assert written.headers["ratelimit-policy"] == f'"write";q={WRITES};w=60'
        assert other.get("/me").status_code == 200, "another key"

    def test_calls_that_a_key_is_not_for_count_too(
        self, cast: Cast, operator: User, url: str
    ) -> None:
        owner = cast.party(Role.DATA_OWNER)
        issued = operator.post(f"/parties/{owner.id}/keys", {"scopes": ["read"]}).json()
        headers = {"Authorization": f"Bearer {issued['secret']}"}
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as http:
            first = refused = http.post("/datasets", json={"name": "photos"})
            problem_of(first, 403, "scope-missing")
            while refused.status_code == 403:
                refused = http.post("/datasets", json={"name": "photos"})
        problem_of(refused, 429, "too-many-calls")

    def test_an_address_that_tries_keys_waits_and_whoever_is_known_there_does_not(
        self, cast: Cast, anonymous: httpx.Client
    ) -> None:
        known = cast.party(Role.DATA_OWNER)
        assert known.get("/me").status_code == 200

        def tried(key: str) -> httpx.Response:
            return anonymous.get("/me", headers={"Authorization": f"Bearer {key}"})

        first = refused = tried("xpk_0")
        while refused.status_code == 401:
            refused = tried("xpk_1")
        assert first.status_code == 401
        problem_of(refused, 429, "too-many-calls")
        assert known.get("/me").status_code == 200
        assert anonymous.get("/healthz").status_code == 200
