"""Callers who take for ever: their bodies, heads and connections end, and others are served meanwhile."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

import httpx
import pytest
from tests.api.conftest import User, left_behind
from tests.api.test_hardening import PROTECTING

from expunge.api import connections
from expunge.api.connections import BoundedProtocol
from expunge.registry.settings import Settings

STALL_SECONDS = 2.0
HEAD_SECONDS = 1.0
PATIENCE_SECONDS = 60
"""For what ends within a second or two on an idle machine."""
LARGE, ANSWERS = "/docs/assets/swagger-ui-bundle.js", 16
"""A file, asked for so often that no buffer holds all of it."""
DIGEST = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines of connections that a test can wait for."""
    monkeypatch.setattr(BoundedProtocol, "head_seconds", HEAD_SECONDS)
    monkeypatch.setattr(BoundedProtocol, "read_stall_seconds", HEAD_SECONDS)


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"body_stall_seconds": STALL_SECONDS, "body_bytes_per_second": 10_000}
    )


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    with socket.create_connection(address(url), timeout=PATIENCE_SECONDS) as connection:
        yield connection


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def head(method: str, path: str, user: User | None = None, **headers: object) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: test"]
    if user is not None:
        lines.append(f"Authorization: {user.http.headers['authorization']}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    found = b""
    try:
        while data := connection.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def is_ended(connection: socket.socket, trickle: bytes) -> bool:
    """Whether the service ends the connection though these bytes come again and again."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            connection.sendall(trickle)
        except OSError:
            return True
        time.sleep(0.1)
    return False


class TestBodies:
    """The rest of a body does not come, or byte by byte."""

    def test_a_body_that_stops_is_cut_off(self, url: str, data_owner: User) -> None:
        with connected(url) as connection:
            connection.sendall(
                head("POST", "/datasets", data_owner, Content_Length=100) + b'{"name":'
            )
            found = answer(connection)
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"urn:expunge:problem:too-slow" in found

    def test_an_upload_that_trickles_is_cut_off_and_leaves_nothing(
        self, url: str, data_owner: User, settings: Settings
    ) -> None:
        path = f"/datasets/{data_owner.open_dataset()}/shards/a.tar"
        begin = head("PUT", path, data_owner, Content_Length=10**6, Content_Digest=DIGEST)
        with connected(url) as connection:
            connection.sendall(begin)
            deadline = time.monotonic() + PATIENCE_SECONDS
            connection.setblocking(False)
            found = b""
            while not found and time.monotonic() < deadline:
                time.sleep(0.1)
                try:
                    connection.sendall(b"x")
                    found = connection.recv(65536)
                except BlockingIOError:
                    continue
        assert found.startswith(b"HTTP/1.1 408 ")
        while left_behind(settings) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left_behind(settings) == []

    def test_a_steady_upload_may_take_as_long_as_it_needs(self, url: str, data_owner: User) -> None:
        path = f"/datasets/{data_owner.open_dataset()}/shards/a.tar"
        sizes = {"Content_Length": 60_000, "Content_Digest": DIGEST, "Connection": "close"}
        begin = head("PUT", path, data_owner, **sizes)
        with connected(url) as connection:
            connection.sendall(begin)
            for _ in range(12):
                connection.sendall(b"x" * 5_000)
                time.sleep(STALL_SECONDS / 10)
            assert b"digest-mismatch" in answer(connection)


class TestConnections:
    """Nothing complete was ever asked, or the answer is not read."""

    @pytest.mark.usefixtures("impatient")
    def test_a_head_that_does_not_come_is_waited_for_in_vain(self, url: str) -> None:
        with connected(url) as connection:
            assert answer(connection) == b""

    @pytest.mark.usefixtures("impatient")
    def test_nor_do_trickled_headers_help(self, url: str) -> None:
        with connected(url) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert is_ended(connection, b"X-A: b\r\n")

    @pytest.mark.usefixtures("impatient")
    def test_nor_a_body_that_goes_on_after_its_refusal(self, url: str, data_owner: User) -> None:
        with connected(url) as connection:
            connection.sendall(
                head(
                    "PUT",
                    f"/datasets/dst_{'0' * 32}/shards/a.tar",
                    data_owner,
                    Content_Length=10**6,
                    Content_Digest=DIGEST,
                )
            )
            assert connection.recv(65536).startswith(b"HTTP/1.1 404 ")
            assert is_ended(connection, b"x")

    @pytest.mark.usefixtures("impatient")
    def test_an_answer_that_nobody_reads_is_given_up(self, url: str) -> None:
        size = len(httpx.get(f"{url}{LARGE}", trust_env=False).content)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            connection.settimeout(PATIENCE_SECONDS)
            connection.connect(address(url))
            connection.sendall(ANSWERS * head("GET", LARGE))
            time.sleep(3 * HEAD_SECONDS)
            assert len(answer(connection)) < ANSWERS * size

    def test_where_there_are_too_many_a_further_one_is_refused(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(connections, "max_connections", lambda: 0)
        with connected(url) as refused:
            refused.sendall(head("GET", "/healthz"))
            assert answer(refused) == b""
        monkeypatch.undo()
        with connected(url) as taken:
            taken.sendall(head("GET", "/healthz"))
            assert taken.recv(65536).startswith(b"HTTP/1.1 200 ")


class TestHeads:
    """Headers are few and small."""

    def test_many_headers_are_refused(self, anonymous: httpx.Client) -> None:
        sent = {f"X-{number}": "a" for number in range(120)}
        refused = anonymous.get("/healthz", headers=sent)
        assert refused.status_code == 431
        assert refused.json()["type"] == "urn:expunge:problem:too-many-headers"

    def test_a_head_without_end_is_refused(self, url: str) -> None:
        with connected(url) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 2**17)
            assert answer(connection)[:13] in (b"HTTP/1.1 431 ", b"")


KEY = "xpk_that-nobody-should-read-in-a-log"
REFUSED = {
    b"GET /healthz HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 65_000: (431, "headers-too-large"),
    b"GET /healthz HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: gzip\r\n\r\n": (
        501,
        "not-implemented",
    ),
    b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n": (400, "bad-request"),
    b"GET /healthz HTTP/1.1\r\n\r\n": (400, "bad-request"),
    f"GET /me HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\0\r\n\r\n".encode(): (
        400,
        "bad-request",
    ),
}


class TestNoHttp:
    """What the parser refuses, the application never sees: it is answered, counted and logged all the same."""

    @pytest.mark.parametrize("sent", REFUSED)
    def test_it_is_a_problem_with_every_protecting_header(
        self, url: str, operator: User, sent: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        status, slug = REFUSED[sent]
        before = counted(operator, status)
        with connected(url) as connection:
            connection.sendall(sent)
            told = HTTPResponse(connection)
            told.begin()
            problem = json.loads(told.read())
            assert connection.recv(1) == b"", "and the connection is closed"
        assert (told.status, problem["status"]) == (status, status)
        assert problem["type"] == f"urn:expunge:problem:{slug}"
        assert told.headers["content-type"] == "application/problem+json"
        assert PROTECTING.items() <= {k.lower(): v for k, v in told.headers.items()}.items()
        assert counted(operator, status) == before + 1
        lines = [each.msg for each in caplog.records if isinstance(each.msg, dict)]
        assert any(each.get("path", "") is None and each["status"] == status for each in lines)
        assert KEY not in caplog.text
        assert KEY not in json.dumps(problem)

    def test_a_body_that_is_no_http_ends_its_call(
        self, url: str, data_owner: User, settings: Settings
    ) -> None:
        path = f"/datasets/{data_owner.open_dataset()}/shards/a.tar"
        with connected(url) as connection:
            chunked = {"Transfer_Encoding": "chunked", "Content_Digest": DIGEST}
            connection.sendall(head("PUT", path, data_owner, **chunked) + b"3\r\nabc\r\n")
            while not left_behind(settings):
                time.sleep(0.01)
            connection.sendall(b"no length\r\n")
            assert connection.recv(64).startswith(b"HTTP/1.1 400 ")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left_behind(settings):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @pytest.mark.usefixtures("impatient")
    def test_a_connection_that_is_cut_is_counted(self, url: str, operator: User) -> None:
        def cut() -> float:
            return sample(operator, 'expunge_http_connections_cut_total{reason="slow-head"}')

        before = cut()
        with connected(url) as connection:
            assert answer(connection) == b""
        assert cut() >= before + 1


def counted(operator: User, status: int) -> float:
    labels = f'{{method="other",route="other",status="{status}"}}'
    return sample(operator, f"expunge_http_requests_total{labels}")


def sample(operator: User, name: str) -> float:
    lines = operator.get("/metrics").text.splitlines()
    return sum(float(each.rpartition(" ")[2]) for each in lines if each.startswith(name))


def test_while_many_are_slow_others_are_served(url: str, data_owner: User) -> None:
    """More of them than there are threads."""
    path = f"/datasets/{data_owner.open_dataset()}/shards/a.tar"
    begin = head("PUT", path, data_owner, Content_Length=10**6, Content_Digest=DIGEST)
    slow = [socket.create_connection(address(url)) for _ in range(80)]
    try:
        for each in slow:
            each.sendall(begin)
        assert data_owner.get("/me").status_code == 200
    finally:
        for each in slow:
            each.close()
