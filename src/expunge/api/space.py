"""Room on the disk of the work folder, for all uploads of a process together. Never waits for any.

A file has its room before its first byte comes. Another process on the same disk counts for itself.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.registry.errors import DomainError

KEPT_BYTES = 2**30
KEPT_SHARE = 20
"""So much stays free, or a 20th of a smaller disk: for other processes, and for what an upload is turned into."""
BLOCK_BYTES = 512
"""What `st_blocks` counts."""


class NoSpace(DomainError):
    """The disk has no room for a file, but may have once others are through."""

    slug, title, status = "unavailable", "Temporarily unavailable", 503


class Space:
    """Of the disk with `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guard = threading.Lock()
        self._coming: dict[Path, int] = {}

    @contextmanager
    def held(self, path: Path, size: int) -> Iterator[None]:
        """Room for a file of `size` bytes at `path`, whether it is written already or not.

        Raises:
            NoSpace: it does not fit beside the others that are coming.
        """
        with self._guard:
            self._require(size)
            self._coming[path] = size
        try:
            yield
        finally:
            with self._guard:
                del self._coming[path]

    def require(self, size: int) -> None:
        """Raise NoSpace unless so many bytes fit now, beside the files that are coming."""
        with self._guard:
            self._require(size)

    def _require(self, size: int) -> None:
        disk = shutil.disk_usage(self.folder)
        kept = min(KEPT_BYTES, disk.total // KEPT_SHARE)
        coming = sum(max(0, all_ - _written(path)) for path, all_ in self._coming.items())
        if size > disk.free - kept - coming:
            raise NoSpace(f"The service's disk has no room for {size:,} bytes; try again.")


def _written(path: Path) -> int:
    """Bytes of the disk that the file has."""
    try:
        return path.stat().st_blocks * BLOCK_BYTES
    except FileNotFoundError:
        return 0
