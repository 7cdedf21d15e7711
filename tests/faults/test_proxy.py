"""The proxy fails as it says it does: what a client meets, and what the server behind it gets to see."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from tests.faults.proxy import HOST, Mode, Proxy

BODY = bytes(range(256)) * 256
SECONDS = 0.5


class Server(ThreadingHTTPServer):
    """Answers every POST with BODY and notes the sizes of the bodies that came in whole."""

    def __init__(self) -> None:
        received: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                read = len(self.rfile.read(length))
                if read < length:
                    self.close_connection = True
                    return
                received.append(read)
                self.send_response(200)
                self.send_header("Content-Length", str(len(BODY)))
                self.end_headers()
                self.wfile.write(BODY)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        super().__init__((HOST, 0), Handler)
        self.received = received

    def handle_error(self, *_: object) -> None:
        """Say nothing: connections that break off are what is tested."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.server_port, cut_after=1000) as proxy:
        yield proxy


def ask(proxy: Proxy, body: bytes = b"please") -> httpx.Response:
    return httpx.post(proxy.url, content=body, timeout=SECONDS, trust_env=False)


def test_by_itself_it_changes_nothing(server: Server, proxy: Proxy) -> None:
    assert ask(proxy, BODY).content == BODY
    assert (server.received, proxy.bitten) == ([len(BODY)], 0)


def test_refused_means_that_nobody_listens_until_it_passes(server: Server, proxy: Proxy) -> None:
    for _ in range(2):
        with proxy.failing(Mode.REFUSE), pytest.raises(httpx.ConnectError):
            ask(proxy)
        assert ask(proxy).content == BODY
    assert len(server.received) == 2


def test_a_kept_connection_is_reset_when_the_server_is_to_refuse(proxy: Proxy) -> None:
    with httpx.Client(timeout=SECONDS, trust_env=False) as client:
        assert client.post(proxy.url, content=b"").content == BODY
        with proxy.failing(Mode.REFUSE), pytest.raises(httpx.TransportError):
            client.post(proxy.url, content=b"")
    assert proxy.bitten >= 1


def test_a_stall_holds_bytes_back_and_lets_them_go_afterwards(server: Server, proxy: Proxy) -> None:
    answers: list[httpx.Response] = []
    with proxy.failing(Mode.STALL):
        with pytest.raises(httpx.ReadTimeout):
            ask(proxy)
        patient = threading.Thread(
            target=lambda: answers.append(
                httpx.post(proxy.url, content=b"please", timeout=30, trust_env=False)
            )
        )
        patient.start()
        patient.join(SECONDS)
        assert patient.is_alive()
        assert server.received == []
    patient.join(30)
    assert answers[0].content == BODY


def test_a_cut_breaks_an_answer_in_the_middle_of_its_body(server: Server, proxy: Proxy) -> None:
    with proxy.failing(Mode.CUT), pytest.raises(httpx.TransportError):
        ask(proxy)
    assert server.received == [len(b"please")]


def test_a_cut_breaks_a_request_in_the_middle_of_its_body(server: Server, proxy: Proxy) -> None:
    with proxy.failing(Mode.CUT), pytest.raises(httpx.TransportError):
        ask(proxy, BODY)
    assert server.received == []


def test_unavailable_is_said_by_the_proxy_alone(server: Server, proxy: Proxy) -> None:
    with proxy.failing(Mode.UNAVAILABLE):
        assert ask(proxy).status_code == 503
        assert httpx.head(proxy.url, timeout=SECONDS, trust_env=False).status_code == 503
    assert server.received == []
    assert proxy.bitten == 2


def test_a_lost_answer_is_one_to_a_request_that_was_carried_out(
    server: Server, proxy: Proxy
) -> None:
    with proxy.failing(Mode.DEAF), pytest.raises(httpx.TransportError):
        ask(proxy)
    assert server.received == [len(b"please")]
