"""PostgreSQL, Redis and an S3 server that listen on TCP and ask for passwords, as on machines of their own."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tests.docker.compose import ROOT, command_of
from tests.faults.object_server import object_server

from expunge.embedded import postgres as embedded_postgres
from expunge.embedded import redis as embedded_redis

HOST = "127.0.0.1"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Stores:
    """Where the stores are, and the folder of secrets that say so."""

    secrets: Path
    s3_endpoint: str


@contextmanager
def running(folder: Path) -> Iterator[Stores]:
    """The three stores, with secrets made by the script that operators use; their addresses alone are others."""
    made, secrets = folder / "made", folder / "secrets"
    subprocess.run([ROOT / "docker" / "make-secrets.sh", made], check=True)
    ports = {"postgres": free_port(), "redis": free_port()}
    secrets.mkdir(mode=0o700)
    for file in made.iterdir():
        text = file.read_text().replace("@postgres/", f"@{HOST}:{ports['postgres']}/")
        (secrets / file.name).write_text(text.replace("@redis:6379/", f"@{HOST}:{ports['redis']}/"))
    with (
        postgres(folder / "postgres", ports["postgres"], secrets / "postgres_password"),
        redis(folder / "redis", ports["redis"], secrets),
        object_server(folder / "objects.log") as port,
    ):
        yield Stores(secrets, f"http://{HOST}:{port}")


@contextmanager
def postgres(folder: Path, port: int, password_file: Path) -> Iterator[None]:
    """A server whose users prove who they are, with the database of the service."""
    binaries, data = embedded_postgres._binaries(), folder / "data"
    user = embedded_postgres.Postgres(folder).user
    data.mkdir(parents=True, mode=0o700)
    password = folder / "password"
    password.write_text(password_file.read_text())
    if user is not None:
        embedded_postgres.let_pass(data)
        for path in (folder, data, password):
            os.chown(path, user, user)
    create = [binaries / "initdb", "-D", data, "-U", "expunge", f"--pwfile={password}"]
    create += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
    subprocess.run(create, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)
    settings = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    with process([binaries / "postgres", "-D", data, *options], folder / "log", user=user):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(
                    host=HOST,
                    port=port,
                    user="expunge",
                    password=password.read_text(),
                    dbname="postgres",
                    autocommit=True,
                ) as connection:
                    connection.execute("CREATE DATABASE expunge")
                    break
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield


@contextmanager
def redis(folder: Path, port: int, secrets: Path) -> Iterator[None]:
    """A server that is started as in the compose file."""
    folder.mkdir()
    _, *arguments = command_of("redis")
    places = {"/run/secrets": str(secrets), "/data": str(folder)}
    command = [str(embedded_redis._binary()), *(replaced(part, places) for part in arguments)]
    with process([*command, "--bind", HOST, "--port", str(port)], folder / "log"):
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.02)
        yield


@contextmanager
def process(
    command: Sequence[str | Path], log: Path, *, user: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, user=user, cwd=log.parent
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(START_SECONDS)


def free_port(host: str = HOST) -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def replaced(text: str, places: Mapping[str, str]) -> str:
    """The text with every place inside a container changed to one outside, once."""
    known = "|".join(re.escape(place) for place in places)
    return re.sub(known, lambda found: places[found[0]], text)
