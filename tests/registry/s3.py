"""S3 servers over real HTTP: one that works (moto's) and ones that fail in the ways that servers and networks do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from minio import Minio
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from expunge.registry.settings import Settings

BUCKET = "expunge"
PROMISED = 1000
"""Bytes that a server announces before it breaks off."""


def settings_of(address: str, endpoint: str = "") -> Settings:
    return Settings(
        database_url="postgresql+psycopg:///none",
        object_store=address,
        s3_endpoint=endpoint,
        s3_access_key="key",
        s3_secret_key=SecretStr("secret"),
    )


def client_of(endpoint: str) -> Minio:
    address = endpoint.removeprefix("http://")
    return Minio(endpoint=address, access_key="key", secret_key="secret", secure=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def working_server() -> Iterator[str]:
    """Address of a server with one bucket."""
    port = free_port()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    endpoint = f"http://127.0.0.1:{port}"
    client_of(endpoint).make_bucket(bucket_name=BUCKET)
    yield endpoint
    server.stop()


def xml(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()


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
    yield f"http://127.0.0.1:{server.server_port}"
    released.set()
    server.shutdown()
    server.server_close()
    thread.join()
