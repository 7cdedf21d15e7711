"""Scratch space of one process, and removal of what processes that died have left. Never touches a live one's."""

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "process-"
LOCK = "lock"


class Scratch:
    """A folder of this process's own under `work_dir`, held by a lock that ends with the process.

    What lies there are images, weights and snapshots of people who may have asked to be forgotten: a
    process that starts removes the folders of those that were killed.
    """

    def __init__(self, work_dir: Path) -> None:
        with _alone(work_dir):
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=work_dir))
            lock = os.open(self.path / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        self._unlock = weakref.finalize(self, os.close, lock)
        remove_abandoned(work_dir)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()


def remove_abandoned(work_dir: Path) -> None:
    """Remove the folders whose process has died; any number of processes may do so at once."""
    with _alone(work_dir):
        for folder in work_dir.glob(f"{PREFIX}*"):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(work_dir: Path) -> Iterator[None]:
    """While no other process makes or removes a folder: one that is not locked yet looks abandoned."""
    work_dir.mkdir(parents=True, exist_ok=True)
    opened = os.open(work_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        # Its process died before it could lock it, or is removing it.
        return True
    return True
