"""One training process from start to end: its messages read, its end explained, stopped when it has to be."""

import errno
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from expunge.registry import jobs, spans
from expunge.registry.jobs import Failure
from expunge.worker import metering
from expunge.worker.context import Context
from expunge.worker.courier import Courier
from expunge.worker.device import one_device
from expunge.worker.leases import Held, Stopped
from expunge.worker.task import STOPPED_STATUS, Task, to_json

POLL_SECONDS = 0.1
"""How soon a stop, a cancelled job, a time limit or a dead process is noticed."""
LAST_WORDS_CHARS = 800
OOM_COUNTERS = ("/proc/vmstat", "/sys/fs/cgroup/memory.events")
"""Files with a line `oom_kill N`: how many processes the kernel has ended for lack of memory."""


class JobFailed(Exception):
    """The job cannot succeed, however often it is tried."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure

    @classmethod
    def refused(cls, reason: str, words: str = "") -> "JobFailed":
        """What it is asked to do cannot be done; `words` are for the model's owner only."""
        return cls(Failure("refused", reason, words))


class JobCrashed(JobFailed):
    """The attempt went wrong in a way that another one may not."""


class Watch:
    """One training process, from start to end."""

    def __init__(
        self, context: Context, held: Held, folder: Path, courier: Courier | None = None
    ) -> None:
        """`courier` carries the snapshots of a run that writes some."""
        self._context = context
        self._held = held
        self._folder = folder
        self._courier = courier
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._result: dict[str, Any] | None = None
        self._failure: JobFailed | OSError | None = None
        self._output = folder / "output.log"
        self._oom_kills = _oom_kills()

    def run(self, task: Task, *, limit_seconds: float, seconds_used: float = 0.0) -> dict[str, Any]:
        """Run the task to its end and return what it found; earlier attempts count towards the limit.

        Raises:
            Stopped, JobFailed, JobCrashed, LeaseLost: the process is gone when this returns.
            OSError: the disk is full.
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
                    str(self._context.settings.training_niceness),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[write_end],
                env=one_device(self._context.settings.device),
                # Ctrl-C in a terminal reaches the supervisor, which decides; and its low priority is
                # its own session's alone.
                start_new_session=True,
            )
        os.close(write_end)
        reader = threading.Thread(target=self._read, args=(read_end,), daemon=True)
        reader.start()
        try:
            with spans.phase("training process"):
                self._supervise(process, limit_seconds, seconds_used)
        except Stopped:
            self._let_stop(process)
            raise
        finally:
            _kill(process)
            reader.join()
            metering.SPEED.set(0)
        self._take_messages()
        if self._result is None:
            failure = self._failure or self._ending(process.returncode)
            raise final(failure, task, self._held.progress)
        # Told last, when all is written: a process that stumbles on its way out does no harm.
        return self._result

    def _supervise(
        self, process: subprocess.Popen[bytes], limit_seconds: float, seconds_used: float
    ) -> None:
        deadline = time.monotonic() + limit_seconds - seconds_used
        while process.poll() is None:
            self._context.stopping.wait(POLL_SECONDS)
            self._take_messages()
            self._held.check()
            if time.monotonic() > deadline:
                reason = f"the time limit of {limit_seconds:g} seconds was reached"
                raise JobFailed(Failure("time-limit", reason))

    def _let_stop(self, process: subprocess.Popen[bytes]) -> None:
        """Have the process finish its step and write a snapshot, and store that."""
        process.terminate()
        deadline = time.monotonic() + self._context.settings.stop_grace_seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        # Its last message may come with its end.
        time.sleep(POLL_SECONDS)
        self._take_messages()
        if self._courier is not None:
            self._courier.finish()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as pipe:
            for line in pipe:
                # A process that was killed in the middle of a message leaves half a line.
                if line.endswith("\n"):
                    self._messages.put(json.loads(line))

    def _take_messages(self) -> None:
        while not self._messages.empty():
            message = self._messages.get()
            match message["kind"]:
                case "progress":
                    self._held.progress = message["progress"]
                    metering.SPEED.set(message["progress"].get("images_per_second", 0))
                case "evaluating":
                    spans.happened("evaluating")
                    self._held.patiently(self._start_evaluating)
                case "snapshot" if self._courier is not None:
                    self._courier.written(message["step"])
                case "snapshot-refused" if self._courier is not None:
                    self._courier.refused(message["reason"])
                case "resumed":
                    self._held.patiently(partial(self._note_resumed, message["step"]))
                case "done":
                    self._result = message["result"]
                case "failed":
                    self._failure = JobFailed.refused(message["reason"])
                case "crashed":
                    self._failure = _crash(message["kind_of_crash"], message["words"])

    def _start_evaluating(self) -> None:
        with self._context.sessions.begin() as session:
            jobs.start_evaluating(session, self._held.lease)

    def _note_resumed(self, step: int) -> None:
        with self._context.sessions.begin() as session:
            jobs.note_resumed(session, self._held.lease, step)

    def _ending(self, status: int) -> JobFailed:
        """Why a process ended that could not say so itself."""
        words = self._output.read_text(errors="replace").strip()[-LAST_WORDS_CHARS:]
        if status == STOPPED_STATUS:
            return JobCrashed(
                Failure("signal", "the training process was told to stop by somebody else", words)
            )
        if status >= 0:
            return JobCrashed(
                Failure("exception", f"the training process ended with status {status}", words)
            )
        if -status == signal.SIGKILL and _oom_kills() > self._oom_kills:
            return JobCrashed(Failure("out-of-memory", CRASHES["out-of-memory"], words))
        name = signal.Signals(-status).name
        return JobCrashed(Failure("signal", f"the training process was ended by {name}", words))


def _crash(kind: Any, words: str) -> JobCrashed | OSError:
    if kind == "disk-full":
        # To be waited out, as when this process meets a full disk itself.
        return OSError(errno.ENOSPC, words)
    return JobCrashed(Failure(kind, CRASHES[kind], words))


def final(
    failure: JobFailed | OSError, task: Task, progress: dict[str, Any] | None
) -> JobFailed | OSError:
    """What is too large even for the way that needs least memory is not tried again; of others the failure itself.

    `progress` is what the attempt reported last.
    """
    told = failure.failure if isinstance(failure, JobFailed) else None
    if told is None or told.kind != "out-of-memory" or not task.recompute or task.fits(progress):
        return failure
    reason = f"{told.reason}, also with activations made anew instead of kept"
    advice = "lower batch_size, or let the model's policy ask for workers with more memory "
    words = f"{task.step} does not fit; {advice}(worker_labels). {told.words}"
    return JobFailed(Failure("out-of-memory", reason, words))


CRASHES = {
    "out-of-memory": "the training process ran out of memory",
    "exception": "the training process ran into an unexpected error",
}


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _oom_kills() -> int:
    """Processes ended for lack of memory so far, as far as this machine tells."""
    counted = 0
    for name in OOM_COUNTERS:
        try:
            lines = Path(name).read_text().splitlines()
        except OSError:
            continue
        counted += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return counted
