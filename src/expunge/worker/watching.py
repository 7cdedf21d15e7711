"""One training process from start to end: its lease kept, its messages read, stopped when it has to be."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from expunge.registry import jobs
from expunge.registry.jobs import Lease
from expunge.worker.context import Context
from expunge.worker.leases import BEATS_PER_LEASE
from expunge.worker.task import Task, to_json

POLL_SECONDS = 0.2
"""How soon a stop, a time limit or a dead process is noticed."""
PROGRESS_SECONDS = 0.5
STOP_GRACE_SECONDS = 5
LAST_WORDS_CHARS = 800


class Stopped(Exception):
    """The worker is being stopped: the job goes back to the queue."""


class JobFailed(Exception):
    """The job cannot succeed; the message is the reason that everybody concerned reads.

    `detail` is for the model's owner only: it may name data sets or files of others.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Watch:
    """One training process, from start to end."""

    def __init__(self, context: Context, lease: Lease, folder: Path) -> None:
        self._context = context
        self._lease = lease
        self._folder = folder
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._result: dict[str, Any] | None = None
        self._reason: str | None = None
        self._progress: dict[str, Any] | None = None
        self._next_beat = 0.0
        self._output = folder / "output.log"

    def run(self, task: Task) -> dict[str, Any]:
        """Run the task to its end and return what it found.

        Raises:
            Stopped, JobFailed, LeaseLost: the process is gone when this returns.
        """
        task_file = self._folder / "task.json"
        task_file.write_text(to_json(task))
        read_end, write_end = os.pipe()
        with self._output.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    "-m",
                    "expunge.worker.training_process",
                    str(task_file),
                    str(write_end),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                # A group of its own: Ctrl-C in a terminal reaches the supervisor, which decides.
                process_group=0,
            )
        os.close(write_end)
        reader = threading.Thread(target=self._read, args=(read_end,), daemon=True)
        reader.start()
        try:
            self._supervise(process)
        finally:
            _end(process)
            reader.join()
        self._take_messages()
        if process.returncode != 0 or self._result is None:
            if self._reason is not None:
                raise JobFailed(self._reason)
            raise JobFailed(_ending(process.returncode), detail=self._last_words())
        return self._result

    def _supervise(self, process: subprocess.Popen[bytes]) -> None:
        limit = self._context.settings.job_time_limit_seconds
        started = time.monotonic()
        while process.poll() is None:
            if self._context.stopping.wait(POLL_SECONDS):
                raise Stopped
            if time.monotonic() - started > limit:
                raise JobFailed(f"the time limit of {limit:g} seconds was reached")
            self._take_messages()
            self._beat()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as pipe:
            for line in pipe:
                self._messages.put(json.loads(line))

    def _take_messages(self) -> None:
        while not self._messages.empty():
            message = self._messages.get()
            match message["kind"]:
                case "progress":
                    self._progress = message["progress"]
                case "evaluating":
                    with self._context.sessions.begin() as session:
                        jobs.start_evaluating(session, self._lease)
                case "done":
                    self._result = message["result"]
                case "failed":
                    self._reason = message["reason"]

    def _beat(self) -> None:
        """Extend the lease, with fresh progress at most twice a second; the database may be away for a while."""
        seconds = self._context.settings.lease_seconds
        now = time.monotonic()
        if now < self._next_beat:
            return
        try:
            with self._context.sessions.begin() as session:
                jobs.heartbeat(session, self._lease, lease_seconds=seconds, progress=self._progress)
        except SQLAlchemyError:
            self._next_beat = now + PROGRESS_SECONDS
            return
        pause = PROGRESS_SECONDS if self._progress else seconds / BEATS_PER_LEASE
        self._next_beat = now + min(pause, seconds / BEATS_PER_LEASE)

    def _last_words(self) -> str:
        words = self._output.read_text(errors="replace").strip()[-LAST_WORDS_CHARS:]
        return f"its last words: {words}" if words else ""


def _ending(status: int) -> str:
    if status >= 0:
        return f"the training process ended with status {status}"
    name = signal.Signals(-status).name
    hint = ", most likely for lack of memory" if -status == signal.SIGKILL else ""
    return f"the training process was ended by {name}{hint}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
