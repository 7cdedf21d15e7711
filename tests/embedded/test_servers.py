"""The bundled PostgreSQL and Redis: real servers, started and stopped for each test."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from expunge.embedded.postgres import Postgres, start_postgres
from expunge.embedded.processes import ProcessFailedError
from expunge.embedded.redis import Redis, start_redis


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own folder: when root runs a second pytest, that is closed to others."""
    with tempfile.TemporaryDirectory(prefix="expunge-tests-") as name:
        yield Path(name)


def redis_reply(url: str, command: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(url.removeprefix("redis+socket://"))
        connection.sendall(command + b"\r\n")
        return connection.recv(256)


def answers(url: str) -> bool:
    try:
        return redis_reply(url, b"PING") == b"+PONG\r\n"
    except OSError:
        return False


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_was_written_is_there_after_a_restart(folder: Path) -> None:
    with start_postgres(folder) as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE kept (n int)"))
            connection.execute(text("INSERT INTO kept VALUES (7)"))
        engine.dispose()
    with start_postgres(folder) as url:
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT n FROM kept")).scalar_one() == 7
        engine.dispose()


def test_postgres_listens_on_a_private_socket_only(folder: Path) -> None:
    with Postgres(folder, durable=False).running() as (url, server):
        sockets = Path(str(make_url(url).query["host"]))
        assert sockets.stat().st_mode & 0o077 == 0
        with psycopg.connect(host=str(sockets), user="expunge", dbname="expunge") as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_paths_too_long_for_a_socket_still_work(folder: Path) -> None:
    deep = folder / ("long" * 30)
    with start_postgres(deep / "pg", durable=False) as url, start_redis(deep / "redis") as queue:
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        engine.dispose()
        assert redis_reply(queue, b"PING") == b"+PONG\r\n"
        sockets = Path(str(make_url(url).query["host"]))
    assert not sockets.exists()


def test_redis_keeps_its_data_over_a_restart(folder: Path) -> None:
    with start_redis(folder) as url:
        assert redis_reply(url, b"SET kept 7") == b"+OK\r\n"
    with start_redis(folder) as url:
        assert redis_reply(url, b"GET kept") == b"$1\r\n7\r\n"


def test_servers_left_over_from_a_killed_starter_are_taken_over(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from expunge.embedded.postgres import start_postgres\n"
        "from expunge.embedded.redis import start_redis\n"
        "root = Path(sys.argv[1])\n"
        "with start_postgres(root / 'pg'), start_redis(root / 'redis'):\n"
        "    (root / 'up').touch(); time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, str(folder)])
    deadline = time.monotonic() + 30
    while not (folder / "up").exists():
        assert starter.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    with start_postgres(folder / "pg") as url, start_redis(folder / "redis") as queue:
        assert url.startswith("postgresql+psycopg://")
        assert redis_reply(queue, b"PING") == b"+PONG\r\n"


def test_a_killed_postgres_starts_again_although_a_query_of_it_still_runs(folder: Path) -> None:
    server = Postgres(folder, durable=False)
    with server.running() as (url, child):
        sockets = str(make_url(url).query["host"])
        # A loop that never looks whether its server still lives.
        endless = "SELECT count(*) FROM (SELECT generate_series(1, 1e12::bigint)) AS numbers"
        query = (
            f"import psycopg; c = psycopg.connect('host={sockets} user=expunge dbname=expunge');"
        )
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{query} print(c.info.backend_pid, flush=True); c.execute({endless!r})",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert client.stdout is not None
        backend = int(client.stdout.readline())
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait(10)
        assert runs(backend)
        again = server.restart()
        assert not runs(backend)
        client.communicate(timeout=10)
        server._wait_ready(again, Path(sockets))
        again.check()


def test_a_killed_redis_starts_again_with_its_data_at_the_same_place(folder: Path) -> None:
    server = Redis(folder)
    with server.running() as (url, child):
        assert redis_reply(url, b"SET kept 7") == b"+OK\r\n"
        os.kill(child.pid, signal.SIGKILL)
        child.process.wait(10)
        again = server.restart()
        deadline = time.monotonic() + 10
        while not answers(url):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert redis_reply(url, b"GET kept") == b"$1\r\n7\r\n"
    assert again.how_it_ended() is not None


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    with start_postgres(folder, durable=False):
        pass
    (folder / "data" / "postgresql.conf").write_text("no such setting = 1\n")
    server = start_postgres(folder, durable=False)
    with pytest.raises(ProcessFailedError, match=r"(?s)PostgreSQL ended.*\.log.*syntax error"):
        server.__enter__()


def test_a_dead_server_is_noticed(folder: Path) -> None:
    with Redis(folder).running() as (_, server):
        server.check()
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait(10)
        with pytest.raises(ProcessFailedError, match=r"Redis ended \(signal SIGKILL\)"):
            server.check()
