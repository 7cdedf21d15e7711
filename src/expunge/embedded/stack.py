"""The whole service on one machine: PostgreSQL, Redis, API, dispatcher and workers as processes.

Binds to the loopback address only, keeps everything in one folder, restarts only in `revive`.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.multiprocess import mark_process_dead

from expunge.embedded.leftovers import end_remembered, remember
from expunge.embedded.postgres import Postgres
from expunge.embedded.processes import Child, ProcessFailedError, start_child
from expunge.embedded.redis import Redis
from expunge.embedded.restarts import DEFAULT_POLICY, Ending, Kept, RestartPolicy
from expunge.embedded.services import HOST, Service, services
from expunge.evidence.signing import Signer

DEFAULT_PORT = 8000
OPERATOR_NAME = "operator"
PROCESSES = "processes.json"
BACKLOG = 1024
"""Connections that wait while no api process takes them: during a restart, mostly."""
# prometheus-client's own name for where processes of one service leave their counts.
COUNTS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SERVERS = ("postgres", "redis")
# As Settings.device of the services.
DEVICE_NAME = "EXPUNGE_DEVICE"
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.05


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

    def __init__(
        self,
        state: Path,
        port: int = DEFAULT_PORT,
        *,
        devices: Sequence[str] = (),
        api_processes: int = 1,
        extra: Mapping[str, str] | None = None,
        restarts: RestartPolicy = DEFAULT_POLICY,
    ) -> None:
        """Nothing is started or written yet.

        Args:
            port: of the api; 0 takes a free one.
            devices: a train worker for each: `auto`, `cpu`, `cuda` or `cuda:1`; without any, one
                on the device that EXPUNGE_DEVICE names.
            api_processes: how many answer at the port; each takes a core at most.
            extra: further EXPUNGE_* variables of the services; they win over the stack's own.
            restarts: how patient `revive` is.

        Raises:
            StackError: a device is none of these.
        """
        self.state = state.resolve()
        self.logs = self.state / "logs"
        self._port = port
        self._extra = dict(extra or {})
        self._devices = _checked(devices or [(os.environ | self._extra).get(DEVICE_NAME, "auto")])
        self._api_processes = api_processes
        self._policy = restarts
        self._redis = Redis(self.state / "redis", log=self.logs / "redis.log")
        self._kept: dict[str, Kept] = {}
        self._remembered: list[int] = []
        self._environment: dict[str, str] = {}
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

    @property
    def processes(self) -> dict[str, Child]:
        """The newest process of each name, running or not.

        The names: postgres, redis, api, api-1 and so on, dispatch, train-0, train-1 and so on,
        interactive.
        """
        return {name: kept.child for name, kept in self._kept.items()}

    @property
    def environment(self) -> dict[str, str]:
        """What the services run with, apart from the device; empty before the start."""
        return dict(self._environment)

    def check(self) -> None:
        """Raise ProcessFailedError if a process of the stack has ended."""
        for child in self.processes.values():
            child.check()

    def revive(self) -> list[Ending]:
        """Start what has ended again, over the same data and at the same addresses.

        To be called often and by one thread only: it waits neither for the pause between two
        restarts of a process nor until a process is ready. What it returns is in restarts.log too.

        Raises:
            ProcessFailedError: a process keeps ending right after its start.
        """
        try:
            endings = [ending for kept in self._kept.values() for ending in kept.revive()]
        except ProcessFailedError as failure:
            self._log([str(failure).partition("\n")[0]])
            raise
        # On a full disk the processes matter more than the notes about them; this note is tried
        # again by the next call.
        with suppress(OSError):
            self._remember()
        self._log([str(ending) for ending in endings])
        return endings

    def is_ready(self) -> bool:
        """Whether all processes run, the api can work, and all workers wait for wake-ups."""
        running = all(child.how_it_ended() is None for child in self.processes.values())
        return running and self._api_is_ready() and self._workers_listen()

    def _start(self) -> None:
        for folder in (self.state, self.logs, self.state / "objects", self.state / "work"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._exit.enter_context(_locked(self.state / "lock"))
        end_remembered(self.state / PROCESSES)
        listener = self._exit.enter_context(_listening(self._port))
        self.url = f"http://{HOST}:{listener.getsockname()[1]}"
        postgres = Postgres(self.state / "postgres", log=self.logs / "postgres.log")
        database_url, database = self._exit.enter_context(postgres.running())
        self._keep("postgres", database, postgres.restart)
        queue_url, queue = self._exit.enter_context(self._redis.running())
        self._keep("redis", queue, self._redis.restart)
        self._environment = {
            **os.environ,
            "EXPUNGE_DATABASE_URL": database_url,
            "EXPUNGE_REDIS_URL": queue_url,
            "EXPUNGE_OBJECT_STORE": (self.state / "objects").as_uri(),
            "EXPUNGE_WORK_DIR": str(self.state / "work"),
            "EXPUNGE_SIGNING_KEY_FILE": str(self._signing_key()),
            **self._extra,
        }
        self._migrate(self._environment)
        self._exit.callback(self._stop_services)
        for service in services(
            listener.fileno(), self._devices, self._api_processes, self._shared_counts()
        ):
            start = partial(self._start_service, service)
            self._keep(service.name, start(), start)
        self.is_new = not self._operator_file.exists()
        if self.is_new:
            self._create_operator(self._environment)
        self._wait_until(self._api_is_ready, "The API does not get ready.")
        self._wait_until(self._workers_listen, "The workers do not get ready.")

    def _keep(self, name: str, child: Child, restart: Callable[[], Child]) -> None:
        self._kept[name] = Kept(name, child, restart, self._policy)
        self._remember()

    def _remember(self) -> None:
        """Note which processes the next stack has to end if this one cannot."""
        running = [child for child in self.processes.values() if child.how_it_ended() is None]
        pids = [child.pid for child in running]
        if pids != self._remembered:
            remember(self.state / PROCESSES, running)
            self._remembered = pids

    def _log(self, lines: Sequence[str]) -> None:
        if not lines:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), (self.logs / "restarts.log").open("a") as log:
            log.writelines(f"{now} {line}\n" for line in lines)

    def _migrate(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "expunge.cli", "migrate"]
        start_child("The migration", command, self.logs / "migrate.log", env=env).wait(
            START_TIMEOUT_SECONDS
        )

    def _create_operator(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "expunge.cli", "operator-key"]
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

    def _signing_key(self) -> Path:
        """The file of the key that signs the record, made at the first start."""
        path = self.state / "signing-key.pem"
        if not path.exists():
            Signer.create(path)
        return path

    def _shared_counts(self) -> dict[str, str]:
        """Where several api processes add up what they count; emptied, as that is of one life only."""
        if self._api_processes == 1:
            return {}
        folder = self.state / "work" / "counts"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return {COUNTS_FOLDER: str(folder)}

    def _start_service(self, service: Service) -> Child:
        if service.name in self._kept and (folder := service.settings.get(COUNTS_FOLDER)):
            # What it was busy with is over, if it did not say so itself.
            mark_process_dead(  # type: ignore[no-untyped-call]
                self._kept[service.name].child.pid, folder
            )
        return start_child(
            service.title,
            [sys.executable, "-m", *service.module],
            self.logs / f"{service.name}.log",
            env={**self._environment, **service.settings},
            files=service.files,
            grace_seconds=service.grace_seconds,
        )

    def _stop_services(self) -> None:
        started = [kept.child for name, kept in self._kept.items() if name not in SERVERS]
        for child in started:
            child.ask_to_stop()
        for child in started:
            child.stop()
        (self.state / PROCESSES).unlink(missing_ok=True)

    def _api_is_ready(self) -> bool:
        try:
            answer = httpx.get(f"{self.url}/readyz", trust_env=False)
        except httpx.TransportError:
            return False
        return answer.is_success

    def _workers_listen(self) -> bool:
        workers = len(self._devices) + 1  # and the interactive one
        return self._redis.waiting_clients() >= workers

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


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    """The api's socket. The stack holds it open: callers wait for an api that restarts, none is refused."""
    with socket.socket() as listener:
        # Connections of an earlier run that are still closing do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by every connection. asyncio sets it for sockets it takes for TCP ones, which it
        # does not for one it is given by number: 40 ms on every answer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise StackError(
                f"port {port} of {HOST} cannot be used ({error.strerror}); choose another port"
            ) from error
        yield listener


def _checked(devices: Sequence[str]) -> tuple[str, ...]:
    for device in devices:
        if not DEVICE.fullmatch(device):
            raise StackError(
                f"{device!r} is no device: auto, cpu, cuda, or one of several such as cuda:1"
            )
    return tuple(devices)
