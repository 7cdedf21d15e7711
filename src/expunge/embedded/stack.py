"""The whole service on one machine: PostgreSQL, Redis, API, dispatcher and two workers as processes.

Binds to the loopback address only, keeps everything in one folder, restarts nothing.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from expunge.embedded.leftovers import end_remembered, remember
from expunge.embedded.postgres import Postgres
from expunge.embedded.processes import Child, ProcessFailedError, start_child
from expunge.embedded.redis import Redis

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
OPERATOR_NAME = "operator"
PROCESSES = "processes.json"
WORKERS = ("train", "interactive")
START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.05
API_GRACE_SECONDS = 5.0
# A worker that trains ends its training process first and gives the job back.
WORKER_GRACE_SECONDS = 20.0


class StackError(RuntimeError):
    """The stack cannot be started here; the message says what to do."""


@dataclass(frozen=True)
class OperatorKey:
    """The first key of a new state folder."""

    party_id: str
    key_id: str
    secret: str


class Stack:
    """The running service over one state folder; use as a context manager."""

    def __init__(self, state: Path, port: int = DEFAULT_PORT) -> None:
        """`port` 0 takes a free one."""
        self.state = state.resolve()
        self.logs = self.state / "logs"
        self._port = port
        self._servers: list[Child] = []
        self._services: list[Child] = []
        self._exit = ExitStack()
        self.url = ""
        self.is_new = False
        """Whether this start created the state folder's operator."""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    @property
    def operator(self) -> OperatorKey:
        """The operator that was made with the state folder."""
        return OperatorKey(**json.loads(self._operator_file.read_text()))

    @property
    def _operator_file(self) -> Path:
        return self.state / "operator.json"

    def check(self) -> None:
        """Raise ProcessFailedError if a process of the stack has ended."""
        for child in [*self._servers, *self._services]:
            child.check()

    def _start(self) -> None:
        for folder in (self.state, self.logs, self.state / "objects", self.state / "work"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._exit.enter_context(_locked(self.state / "lock"))
        end_remembered(self.state / PROCESSES)
        port = _free_port(self._port)
        self.url = f"http://{HOST}:{port}"
        postgres = Postgres(self.state / "postgres", log=self.logs / "postgres.log")
        redis = Redis(self.state / "redis", log=self.logs / "redis.log")
        database_url, database = self._exit.enter_context(postgres.running())
        queue_url, queue = self._exit.enter_context(redis.running())
        self._servers = [database, queue]
        env = self._environment(database_url, queue_url)
        remember(self.state / PROCESSES, self._servers)
        self._migrate(env)
        self._exit.callback(self._stop_services)
        self._start_services(env, port)
        self.is_new = not self._operator_file.exists()
        if self.is_new:
            self._create_operator(env)
        self._wait_until(self._api_is_ready, "The API does not get ready.")
        self._wait_until(
            lambda: redis.waiting_clients() >= len(WORKERS), "The workers do not get ready."
        )

    def _environment(self, database_url: str, queue_url: str) -> dict[str, str]:
        return {
            **os.environ,
            "EXPUNGE_DATABASE_URL": database_url,
            "EXPUNGE_REDIS_URL": queue_url,
            "EXPUNGE_OBJECT_STORE": (self.state / "objects").as_uri(),
            "EXPUNGE_WORK_DIR": str(self.state / "work"),
        }

    def _migrate(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "expunge.registry", "migrate"]
        start_child("The migration", command, self.logs / "migrate.log", env=env).wait(
            START_TIMEOUT_SECONDS
        )

    def _create_operator(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "expunge.registry", "operator-key"]
        made = subprocess.run(  # noqa: S603 -- this package's own command
            [*command, "--name", OPERATOR_NAME],
            env=dict(env),
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_SECONDS,
        )
        if made.returncode != 0:
            raise ProcessFailedError(f"The operator's key cannot be made.\n{made.stderr}")
        part = self._operator_file.with_suffix(".part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(made.stdout)
        part.replace(self._operator_file)

    def _start_services(self, env: Mapping[str, str], port: int) -> None:
        serve = ["uvicorn", "expunge.api.app:create_app", "--factory"]
        serve += ["--host", HOST, "--port", str(port)]
        # Open event streams would hold up the stop; watchers resume where they were.
        serve += ["--timeout-graceful-shutdown", "2"]
        self._start_service("api", serve, env, API_GRACE_SECONDS)
        for kind in ("dispatch", *WORKERS):
            arguments = ["expunge.worker", kind]
            self._start_service(f"{kind} worker", arguments, env, WORKER_GRACE_SECONDS)

    def _start_service(
        self, name: str, module: Sequence[str], env: Mapping[str, str], grace_seconds: float
    ) -> None:
        child = start_child(
            f"The {name}",
            [sys.executable, "-m", *module],
            self.logs / f"{name.replace(' ', '-')}.log",
            env=env,
            grace_seconds=grace_seconds,
        )
        self._services.append(child)
        remember(self.state / PROCESSES, [*self._servers, *self._services])

    def _stop_services(self) -> None:
        for child in self._services:
            child.ask_to_stop()
        for child in self._services:
            child.stop()
        (self.state / PROCESSES).unlink(missing_ok=True)

    def _api_is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/readyz", trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success

    def _wait_until(self, condition: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise ProcessFailedError(f"{failure} Logs: {self.logs}")
            time.sleep(POLL_SECONDS)


def remove_state(state: Path) -> None:
    """Remove a state folder that no stack uses; anything else is left alone.

    Raises:
        StackError: a stack uses it, or it is another kind of folder.
    """
    if not state.exists():
        return
    if not (state / "lock").exists():
        raise StackError(f"{state} is not the state folder of a stack; nothing is removed")
    with _locked(state / "lock"):
        end_remembered(state / PROCESSES)
        shutil.rmtree(state)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise StackError(
                f"{path.parent} is in use by process {file.read().strip()}; stop that one or "
                "choose another state folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        # As the API will: connections of an earlier run that are still closing do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise StackError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); choose another port"
            ) from error
        return int(probe.getsockname()[1])
