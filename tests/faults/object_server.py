"""An S3 server as a process of its own (moto's, over real HTTP), with one empty bucket. Keeps everything in memory."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3
from minio import Minio
from pydantic import SecretStr
from tests.faults.proxy import HOST

from expunge.registry.settings import Settings

BUCKET = "expunge"
KEY, SECRET = "key", "secret"
START_SECONDS = 30.0


def settings_for(database_url: str, endpoint: str) -> Settings:
    """Settings of somebody who uses the bucket at this address."""
    return Settings(
        database_url=database_url,
        object_store=f"s3://{BUCKET}",
        s3_endpoint=endpoint,
        s3_access_key=KEY,
        s3_secret_key=SecretStr(SECRET),
    )


@contextmanager
def object_server(log: Path) -> Iterator[int]:
    """The port of a running server."""
    port = _free_port()
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _make_bucket(port)
        yield port
    finally:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _make_bucket(port: int) -> None:
    client = Minio(
        endpoint=f"{HOST}:{port}",
        access_key=KEY,
        secret_key=SECRET,
        secure=False,
        http_client=urllib3.PoolManager(retries=False),
    )
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.make_bucket(bucket_name=BUCKET)
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return
