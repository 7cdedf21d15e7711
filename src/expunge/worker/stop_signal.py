"""SIGTERM as the training process hears it: an end at once, or after the step that is under way.

Never imports torch: it is installed before that takes its seconds.
"""

import os
import signal
from types import FrameType

from expunge.worker.task import STOPPED_STATUS


class StopSignal:
    """Ends the process with STOPPED_STATUS; a run that asks between its steps may finish one first."""

    def __init__(self) -> None:
        self._received = False
        self._asked_for = False
        signal.signal(signal.SIGTERM, self._receive)

    def should_stop(self) -> bool:
        """Whether the signal came; from the first call on it waits to be asked for."""
        self._asked_for = True
        return self._received

    def steps_are_over(self) -> None:
        """Nobody asks any more: the signal ends the process at once again."""
        self._asked_for = False
        if self._received:
            self._end()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True
        if not self._asked_for:
            self._end()

    def _end(self) -> None:
        # Not by an exception: raised anywhere, it may be swallowed; nothing is left to be tidied up.
        os._exit(STOPPED_STATUS)
