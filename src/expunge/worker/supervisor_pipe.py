"""The training process's end of the pipe to its supervising worker: one JSON message a line. Never imports torch."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from expunge.unlearning.progress import Progress


class Supervisor:
    """Who is told how it goes.

    Writing fails when the supervisor is gone, which ends this process: nobody is left to record a result.
    """

    def __init__(self, pipe: TextIO) -> None:
        self._pipe = pipe

    def tell(self, kind: str, **content: Any) -> None:
        """Send one message."""
        self._pipe.write(json.dumps({"kind": kind, **content}) + "\n")
        self._pipe.flush()

    def progress(self, progress: "Progress") -> None:
        """Send where the run stands."""
        self.tell("progress", progress=asdict(progress))
