"""What every job runner needs: settings, database sessions, object store, and whether to stop."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from expunge.registry.database import Sessions
from expunge.registry.objects import ObjectStore
from expunge.registry.settings import Settings


@dataclass(frozen=True)
class Context:
    """Built once per worker process."""

    settings: Settings
    sessions: Sessions
    store: ObjectStore
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the process was asked to stop: long work gives its job back."""

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A fresh folder for one attempt, removed afterwards."""
        self.settings.work_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.settings.work_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
