"""When a process of the stack that has ended is started again, and when that is hopeless.

Starts through the functions it is given; never ends a process.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from expunge.embedded.processes import Child, ProcessFailedError


@dataclass(frozen=True)
class RestartPolicy:
    """How patiently ended processes are started again."""

    first_pause_seconds: float = 1.0
    """Before the second restart in a row; the first is at once, later pauses double."""
    longest_pause_seconds: float = 30.0
    steady_seconds: float = 60.0
    """After running this long, a process is restarted as if it had never ended before."""
    at_once_seconds: float = 10.0
    """A process that ended sooner after its start may not be able to run here at all."""
    hopeless_after: int = 5
    """So many ends at once, in a row and in the same way, are not followed by a restart."""


DEFAULT_POLICY = RestartPolicy()


@dataclass(frozen=True)
class Ending:
    """A process has ended, or could not be started, and is started (again) after the pause."""

    name: str
    title: str
    how: str
    pause_seconds: float

    def __str__(self) -> str:
        when = f" in {self.pause_seconds:g} s" if self.pause_seconds else ""
        return f"{self.title} ended ({self.how}); starting it again{when}."


class Kept:
    """One process that is started again whenever it has ended."""

    def __init__(
        self, name: str, child: Child, start: Callable[[], Child], policy: RestartPolicy
    ) -> None:
        self.name = name
        self.child = child
        """The newest process, running or not."""
        self._start = start
        self._policy = policy
        self._started = time.monotonic()
        self._due: float | None = None
        self._pause: float | None = None
        self._in_a_row = 0
        self._how = ""

    def revive(self) -> list[Ending]:
        """Start the process again if it has ended and its pause is over; what was noticed by that.

        Raises:
            ProcessFailedError: it keeps ending at once in the same way.
        """
        endings = []
        if self._due is None:
            how = self.child.how_it_ended()
            if how is None:
                return []
            endings.append(self._note(how))
        if self._due is None or time.monotonic() < self._due:
            return endings
        try:
            self.child = self._start()
        except OSError as error:
            self._started = time.monotonic()
            return [*endings, self._note(str(error))]
        self._started, self._due = time.monotonic(), None
        return endings

    def _note(self, how: str) -> Ending:
        policy, ran_seconds = self._policy, time.monotonic() - self._started
        if ran_seconds >= policy.at_once_seconds:
            self._in_a_row = 0
        elif how == self._how:
            self._in_a_row += 1
        else:
            self._in_a_row = 1
        self._how = how
        title = self.child.name
        if self._in_a_row >= policy.hopeless_after:
            raise ProcessFailedError(
                f"{title} ended {self._in_a_row} times in a row right after its start ({how}).\n"
                f"{self.child.last_words()}"
            )
        if self._pause is None or ran_seconds >= policy.steady_seconds:
            self._pause = 0.0
        else:
            longer = max(policy.first_pause_seconds, 2 * self._pause)
            self._pause = min(longer, policy.longest_pause_seconds)
        self._due = time.monotonic() + self._pause
        return Ending(self.name, title, how, self._pause)
