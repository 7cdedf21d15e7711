"""What every job runner needs: settings, database sessions, object store, and whether to stop."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from expunge.registry.database import Sessions, readings
from expunge.registry.objects import ObjectStore
from expunge.registry.scratch import Scratch, remove_abandoned
from expunge.registry.settings import Settings


@dataclass(frozen=True)
class Context:
    """Built once per worker process."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the process was asked to stop: long work gives its job back."""

    @cached_property
    def readings(self) -> Sessions:
        """Sessions of the same database that write nothing."""
        return readings(self.sessions.kw["bind"])

    @cached_property
    def _scratch(self) -> Scratch:
        return Scratch(self.settings.work_dir)

    def close(self) -> None:
        """Remove this process's scratch space."""
        self._scratch.close()

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A fresh folder for one attempt, removed afterwards."""
        remove_abandoned(self.settings.work_dir)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._scratch.path))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
