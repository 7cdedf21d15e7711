"""S3 servers over real HTTP: one that works (moto's) and ones that fail in the ways that servers and networks do."""

import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from minio import Minio
from moto.s3.models import FakeKey, s3_backends
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from expunge.registry.settings import Settings

BUCKET = "expunge"
PROMISED = 1000
"""Bytes that a server announces before it breaks off."""


def settings_of(address: str, endpoint: str = "", **others: Any) -> Settings:
    return Settings(
        database_url="postgresql+psycopg:///none",
        object_store=address,
        s3_endpoint=endpoint,
        s3_access_key="key",
        s3_secret_key=SecretStr("secret"),
        **others,
    )


def public_settings_of(endpoint: str) -> dict[str, Any]:
    """Fields of settings with a bucket that owners reach, at another address than the service."""
    return {
        "object_store": f"s3://{BUCKET}",
        "s3_endpoint": endpoint,
        "s3_public_endpoint": endpoint.replace("127.0.0.1", "localhost"),
        "s3_access_key": "key",
        "s3_secret_key": SecretStr("secret"),
    }


def client_of(endpoint: str) -> Minio:
    address = endpoint.removeprefix("http://")
    return Minio(endpoint=address, access_key="key", secret_key="secret", secure=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def working_server() -> Iterator[str]:
    """Address of a server with one empty bucket. One at a time: moto's servers in a process share their buckets."""
    s3_backends.reset()
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    replaced: list[FakeKey] = []
    with pytest.MonkeyPatch.context() as patch:
        # Moto closes a replaced object under the thread that still answers about it.
        patch.setattr(FakeKey, "dispose", lambda key, garbage=False: replaced.append(key))
        server.start()
        endpoint = f"http://127.0.0.1:{port}"
        try:
            client_of(endpoint).make_bucket(bucket_name=BUCKET)
            yield endpoint
        finally:
            server.stop()
    for key in replaced:
        key.dispose()


@dataclass
class Relay:
    """A server between, which spoils answers; of the requests that came, method and path (`asked`), and headers."""

    endpoint: str
    asked: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def count(self, method: str, containing: str = "") -> int:
        """How many such requests came."""
        return sum(each == method and containing in path for each, path in self.asked)


class _Between(BaseHTTPRequestHandler):
    """Passes a request on to `target` and its answer back, unless `spoil` says otherwise."""

    protocol_version = "HTTP/1.1"
    target: str
    found: Relay
    spoil: Callable[[str, str], str | None]

    def pass_on(self) -> None:
        self.found.asked.append((self.command, self.path))
        self.found.headers.append(dict(self.headers))
        how = type(self).spoil(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2 if how == "reset" else length)
        if how == "reset":
            self.reset()
            return
        if how == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, data = self.answer_of(how, body)
        if how == "alter":
            headers["x-amz-checksum-sha256"] = "another"
        self.pass_back(how, status, headers, data)

    def answer_of(self, how: str | None, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if how == "refuse":
            return 503, {"Content-Type": "application/xml"}, xml("SlowDown")
        if how in DENIED:
            return DENIED[how], {"Content-Type": "application/xml"}, xml(how)
        if how in LATE:
            return 200, {"Content-Type": "application/xml"}, LATE[how]
        connection = http.client.HTTPConnection(self.target)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        found = answer.status, dict(answer.headers), answer.read()
        connection.close()
        return found

    def pass_back(self, how: str | None, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) * 2 // 3] if how in ("cut", "tear") else data)
        if how == "tear":
            self.reset()
        self.close_connection = how is not None

    def reset(self) -> None:
        """End the connection as a machine does that has forgotten it."""
        at_once = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.connection.close()
        self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def relay(server: str, spoil: Callable[[str, str], str | None]) -> Iterator[Relay]:
    """In front of `server`; what `spoil` says of method and path.

    "refuse" it, deny it (`DENIED`), "reset" the connection after half of its body, "corrupt" a byte of that, "cut" or
    "tear" its answer (an end, or a reset), "alter" its digest, answer with an error or with "html" but
    the status of a success ("fail late").
    """
    found = Relay("")
    members = {
        "target": server.removeprefix("http://"),
        "spoil": staticmethod(spoil),
        "found": found,
    }
    handler = type("Handler", (_Between,), members)
    between = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    found.endpoint = f"http://127.0.0.1:{between.server_port}"
    thread = threading.Thread(target=between.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        between.shutdown()
        between.server_close()
        thread.join()


def xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


DENIED = {"AccessDenied": 403, "NotImplemented": 501, "VersioningNotConfigured": 404}
"""What servers call it that they do not offer a call, or not to this key."""

LATE = {"fail late": xml("InternalError"), "html": b"<html>Please <b>log in</html>"}
"""Bodies of answers that began like successes."""

ANSWERS = {
    "unavailable": (503, "application/xml", xml("ServiceUnavailable")),
    "slow down": (503, "application/xml", xml("SlowDown")),
    "internal error": (500, "application/xml", xml("InternalError")),
    "gateway": (502, "text/html", b"<html>Bad Gateway</html>"),
    "no S3 at all": (404, "text/html", b"<html>nothing here</html>"),
    "keys refused": (403, "application/xml", xml("InvalidAccessKeyId")),
    "bucket gone": (404, "application/xml", xml("NoSuchBucket")),
}


@contextmanager
def failing_server(failure: str) -> Iterator[str]:
    """Address of a server that answers with one of ANSWERS, is "refused", "stalls", or whose answer "breaks"."""
    if failure == "refused":
        yield f"http://127.0.0.1:{free_port()}"
        return
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.close_connection = True
            if failure == "stalls":
                released.wait()
                return
            broken = (200, "application/octet-stream", b"the first bytes")
            status, content_type, body = ANSWERS.get(failure, broken)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) if status != 200 else PROMISED))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()
