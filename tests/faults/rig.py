"""The whole service over one folder, within reach of every fault: who runs, who holds what, how it stands.

Looks at processes, rows and objects from outside; what is done to them is in `injuries`.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from tests.faults import promise
from tests.faults.disk import Disk, mounted
from tests.faults.object_server import BUCKET, KEY, SECRET, object_server, settings_for
from tests.faults.proxy import Proxy
from tests.faults.reviving import Reviver

from expunge.embedded.restarts import RestartPolicy
from expunge.embedded.stack import Stack
from expunge.registry.database import connect
from expunge.registry.objects import DirectoryStore, ObjectStore, open_store

T = TypeVar("T")
Row = Mapping[str, Any]

LEASE_SECONDS = 4
REPUBLISH_SECONDS = 2
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "EXPUNGE_LEASE_SECONDS": str(LEASE_SECONDS),
    "EXPUNGE_REPUBLISH_SECONDS": str(REPUBLISH_SECONDS),
    "EXPUNGE_SNAPSHOT_SECONDS": "1",
    "EXPUNGE_RETRY_SECONDS": "0.3",
    "EXPUNGE_STOP_GRACE_SECONDS": "6",
    "EXPUNGE_OBJECT_SWEEP_SECONDS": "5",
    "EXPUNGE_OBJECT_GRACE_SECONDS": "30",
}
"""A service for which seconds are what minutes are for others."""
RESTARTS = RestartPolicy(
    first_pause_seconds=0.2, longest_pause_seconds=1, steady_seconds=5, at_once_seconds=0
)
WORK_MEBIBYTES = 64
OBJECTS_MEBIBYTES = 64
TRAINING_PROCESS = "expunge.worker.training_process"
RECLAIM_SECONDS = 30.0
"""After its lease ran out, a job may be called running for so long: the dispatcher, who would notice, may
have been killed itself, or cut off, and waits then until workers have had the time to say that they live."""
WAIT_SECONDS = 120.0
"""Far more than anything takes on a quiet machine."""
POLL_SECONDS = 0.03


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


class Rig:
    """A running service; use as a context manager.

    Its objects are in S3 behind a proxy, or in a directory on a small disk of its own; its work folder
    is on a small disk as well, where this user may mount one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trainers: int = 2,
        directory_store: bool = False,
    ) -> None:
        self.state = folder / "state"
        self.trainers = [f"train-{number}" for number in range(trainers)]
        self.proxy: Proxy | None = None
        """In front of the object store; none where that is a directory."""
        self.work_disk: Disk | None = None
        self.store_disk: Disk | None = None
        self.accepted: dict[tuple[str, str], str] = {}
        """What users were answered; see Records.accepted."""
        self._folder = folder
        self._directory_store = directory_store
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as exit_stack:
            self._start(exit_stack)
            self._exit = exit_stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def _start(self, stack: ExitStack) -> None:
        self.work_disk = stack.enter_context(mounted(self.state / "work", WORK_MEBIBYTES))
        store = {}
        if self._directory_store:
            objects = self.state / "objects"
            self.store_disk = stack.enter_context(mounted(objects, OBJECTS_MEBIBYTES))
        else:
            port = stack.enter_context(object_server(self._folder / "objects.log"))
            self.proxy = stack.enter_context(Proxy(port))
            store = {
                "EXPUNGE_OBJECT_STORE": f"s3://{BUCKET}",
                "EXPUNGE_S3_ENDPOINT": self.proxy.url,
                "EXPUNGE_S3_ACCESS_KEY": KEY,
                "EXPUNGE_S3_SECRET_KEY": SECRET,
            }
        self.stack = stack.enter_context(
            Stack(
                self.state,
                port=0,
                devices=("cpu",) * len(self.trainers),
                extra=SETTINGS | store,
                restarts=RESTARTS,
            )
        )
        database_url = self.stack.environment["EXPUNGE_DATABASE_URL"]
        self.engine: Engine = connect(database_url)
        stack.callback(self.engine.dispose)
        self.store: ObjectStore = (
            DirectoryStore(self.state / "objects")
            if self._directory_store
            else open_store(settings_for(database_url, f"http://127.0.0.1:{port}"))
        )
        self.reviver = stack.enter_context(Reviver(self.stack))

    # Processes.

    def process(self, name: str) -> psutil.Process:
        """The running process of this name, as the stack calls it; waits until there is one."""

        def running() -> psutil.Process | None:
            child = self.stack.processes[name]
            with suppress(psutil.NoSuchProcess):
                if child.process.poll() is None:
                    return psutil.Process(child.pid)
            return None

        return self.eventually(running, f"{name} runs")

    def training(self, *workers: str) -> list[psutil.Process]:
        """The training processes of these train workers, of all if none is named."""
        found = []
        for name in workers or self.trainers:
            with suppress(psutil.NoSuchProcess):
                found += [
                    child
                    for child in psutil.Process(self.stack.processes[name].pid).children()
                    if TRAINING_PROCESS in command_of(child)
                ]
        return found

    def trainer_of(self, job_id: str) -> str:
        """Name of the worker process that runs the job; waits until one does."""

        def holder() -> str | None:
            job = self.job(job_id)
            pids = {f"train-{self.stack.processes[name].pid}": name for name in self.trainers}
            return pids.get((job["worker"] or "").partition(".")[0]) if is_live(job) else None

        return self.eventually(holder, f"{job_id} runs")

    def job_of(self, worker: str) -> str | None:
        """Id of the job that the worker process of this name runs now."""
        held = self.rows(
            "SELECT id FROM jobs WHERE state IN ('running', 'evaluating') AND worker LIKE :name",
            name=f"%-{self.stack.processes[worker].pid}.%",
        )
        return str(held[0]["id"]) if held else None

    # Rows.

    def rows(self, query: str, **values: Any) -> list[Row]:
        """What the database answers, asked again while it is away."""

        def ask() -> list[Row]:
            with self.engine.connect() as connection:
                return list(connection.execute(text(query), values).mappings())

        return self._through_outages(ask)

    def _through_outages(self, ask: Callable[[], T]) -> T:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return ask()
            except OperationalError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def job(self, job_id: str) -> Row:
        """The row of a job."""
        return self.rows("SELECT * FROM jobs WHERE id = :id", id=job_id)[0]

    def log(self, subject_id: str) -> list[Row]:
        """The log rows of one thing, oldest first."""
        return self.rows("SELECT * FROM log WHERE subject_id = :id ORDER BY seq", id=subject_id)

    def until_snapshot(self, job_id: str) -> Row:
        """The job's row once an attempt that runs has stored a snapshot of its own."""

        def stored() -> Row | None:
            job = self.job(job_id)
            own = f"/{job['lease_token']}/" in (job["snapshot_key"] or "")
            return job if is_live(job) and own else None

        return self.eventually(stored, f"{job_id} has a snapshot")

    def until_ended(self, job_id: str) -> Row:
        """The job's row once it is final."""

        def ended() -> Row | None:
            job = self.job(job_id)
            return None if is_live(job) or job["state"] == "queued" else job

        return self.eventually(ended, f"{job_id} ends")

    # Waiting and judging.

    def eventually(
        self,
        condition: Callable[[], T | None],
        what: str,
        *,
        seconds: float = WAIT_SECONDS,
    ) -> T:
        """What the condition returns once it holds.

        Raises:
            AssertionError: it did not hold in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            if found := condition():
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s in vain: {what}")
            time.sleep(POLL_SECONDS)

    def until_rest(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until nothing waits or runs any more, and all that the log says of it is sealed."""
        unfinished = "SELECT id FROM jobs WHERE state IN ('queued', 'running', 'evaluating')"
        unsealed = "SELECT seq FROM log_unsealed WHERE refused_at IS NULL"
        self.eventually(
            lambda: not self.rows(unfinished) and not self.rows(unsealed),
            "all jobs end",
            seconds=seconds,
        )

    def check(self) -> None:
        """Check the promise while the service works."""
        look = partial(
            promise.at_any_moment,
            self.engine,
            self.accepted,
            lease_tolerance_seconds=RECLAIM_SECONDS,
        )
        _require(self._through_outages(look))

    def check_at_rest(self) -> None:
        """Check the whole promise once everything has ended."""
        self.until_rest()
        look = partial(promise.at_rest, self.engine, self.store, self.accepted)
        _require(self._through_outages(look))


def _require(found: Mapping[str, list[str]]) -> None:
    if words := list(promise.told(found)):
        raise AssertionError("the promise was broken:\n" + "\n".join(words))


def is_live(job: Row) -> bool:
    """Whether a worker holds the job."""
    return job["state"] in ("running", "evaluating")
