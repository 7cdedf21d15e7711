"""Starts again what died, as `expunge up` does, from a thread beside the test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from expunge.embedded.processes import ProcessFailedError
from expunge.embedded.stack import Stack

LOOK_SECONDS = 0.1


class Reviver:
    """Revives a stack while the block runs.

    Raises:
        ProcessFailedError: at the end, if a process could not be kept running.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._done = threading.Event()
        self._turn = threading.Lock()
        self._failed: ProcessFailedError | None = None
        self._thread = threading.Thread(target=self._run, name="reviver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        if self._failed is not None and error is None:
            raise self._failed

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What dies in this block stays dead until its end."""
        with self._turn:
            yield

    def _run(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            with self._turn:
                try:
                    self._stack.revive()
                except ProcessFailedError as error:
                    self._failed = error
                    return
