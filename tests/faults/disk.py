"""A small disk in memory that can be filled to its last byte: full for everybody, not a limit per process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BALLAST = ".ballast"
BLOCK_BYTES = 2**16


class Disk:
    """Mounted on `folder` while the block of `mounted` runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / BALLAST

    def fill(self) -> None:
        """Leave no byte free, whatever has been freed since."""
        block = b"\0" * BLOCK_BYTES
        size = BLOCK_BYTES
        with self._ballast.open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(block[:size])
                except OSError:
                    size //= 2

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Disk | None]:
    """A disk of this size at `folder`; None where this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or not _mounts(folder, mebibytes):
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        # Lazily: a process that was just killed may still hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def _mounts(folder: Path, mebibytes: int) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0700", "expunge-faults"]
    return subprocess.run([*command, str(folder)], capture_output=True, check=False).returncode == 0
