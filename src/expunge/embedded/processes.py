"""Child processes of the embedded stack: started with a log file, watched, stopped in order.

Never restarts anything by itself: a child that dies is reported with the last lines of its log.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies

STOP_GRACE_SECONDS = 10.0
REPORTED_LOG_LINES = 15
REPORTED_LOG_BYTES = 16 * 2**10


class ProcessFailedError(RuntimeError):
    """A process of the stack ended or did not get ready; the message quotes its last log lines."""


@dataclass(frozen=True)
class Child:
    """One running child process; its stdout and stderr are appended to `log`."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]
    stop_signal: signal.Signals
    grace_seconds: float

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def how_it_ended(self) -> str | None:
        """`signal SIGKILL`, `exit status 1` or the like; None while the process runs."""
        code = self.process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:  # most of the real-time signals have no name
            return f"signal {-code}"

    def check(self) -> None:
        """Raise ProcessFailedError if the process has ended."""
        how = self.how_it_ended()
        if how is not None:
            raise ProcessFailedError(f"{self.name} ended ({how}).\n{self.last_words()}")

    def wait(self, timeout: float) -> None:
        """Wait until the process has ended with status 0.

        Args:
            timeout: seconds.

        Raises:
            ProcessFailedError: it ended with another status, or still runs after `timeout`.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            raise ProcessFailedError(
                f"{self.name} did not finish within {timeout:.0f} s.\n{self.last_words()}"
            ) from None
        if code != 0:
            self.check()

    def ask_to_stop(self) -> None:
        """Send the stop signal if the process still runs; does not wait."""
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)

    def stop(self) -> None:
        """Stop the process and wait; after the grace period it is killed with all it started."""
        self.ask_to_stop()
        try:
            self.process.wait(self.grace_seconds)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.kill()
            self.process.wait()

    def last_words(self) -> str:
        """The end of the log, indented, with the log's path."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - REPORTED_LOG_BYTES))
                lines = log.read().decode(errors="replace").splitlines()[-REPORTED_LOG_LINES:]
        except FileNotFoundError:
            lines = []
        shown = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return f"Last lines of {self.log}:\n{shown}"


def start_child(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str] | None = None,
    user: int | None = None,
    files: Sequence[int] = (),
    stop_signal: signal.Signals = signal.SIGTERM,
    grace_seconds: float = STOP_GRACE_SECONDS,
) -> Child:
    """Start a process in its own session: Ctrl-C in the terminal reaches only the stack.

    Args:
        user: numeric user and group to run as; only root can set it.
        files: numbers of open files that the process has under the same numbers.
        grace_seconds: how long `stop` waits before it kills.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 -- the commands are this package's own
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=log.parent,
            start_new_session=True,
            pass_fds=files,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    return Child(name, log, process, stop_signal, grace_seconds)


def wait_until_gone(pid: int, timeout: float) -> bool:
    """Wait until no process has this id; False if one still has it after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False
