"""Where a server's unix socket lies: beside its data, or elsewhere if that path is too long."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included.
MAX_SOCKET_PATH_BYTES = 103


@contextmanager
def socket_folder(preferred: Path, socket_name: str, *, owner: int | None = None) -> Iterator[Path]:
    """A folder of mode 0700 for the socket `socket_name`; a temporary one is removed at the end."""
    path = os.fsencode(preferred / socket_name)
    if len(path) <= MAX_SOCKET_PATH_BYTES:
        preferred.mkdir(parents=True, exist_ok=True)
        _make_private(preferred, owner)
        yield preferred
        return
    folder = Path(tempfile.mkdtemp(prefix="expunge-"))
    try:
        _make_private(folder, owner)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_private(folder: Path, owner: int | None) -> None:
    folder.chmod(0o700)
    if owner is not None:
        os.chown(folder, owner, owner)
