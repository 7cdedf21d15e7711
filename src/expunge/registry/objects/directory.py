"""Objects as files of one directory; for one machine. Never shows a half-written object."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from expunge.formats.digests import CHUNK_BYTES
from expunge.registry.objects.store import DirectPut, ObjectMissing, StoreUnavailable, key_of

INCOMING = "incoming"
"""Folder of files that are being written; without it the directory is none of ours, or not mounted."""
PLACINGS = 100
"""Of a file that is complete, while others keep removing its folder as empty."""
PASSING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,  # a limit on the size of files, which an operator can lift
        errno.EIO,
        errno.ESTALE,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,  # the directory itself: objects that are missing are told apart before
        errno.ENOTDIR,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EMFILE,
        errno.ENFILE,
    }
)
"""Errors of a file system that end without a change of the program."""


@contextmanager
def _reaching(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in PASSING:
            raise StoreUnavailable(f"{root}: {error}") from error
        raise


class DirectoryStore:
    """Objects as files below `root`, which is made if it is not there."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / INCOMING
        self._incoming.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, sha256: str, *, under: str | None = None) -> str:
        """As ObjectStore.put: written beside, synced, then renamed."""
        key = key_of(sha256, under)
        target = self._root / key
        with path.open("rb") as source, _reaching(self._root):
            size = os.fstat(source.fileno()).st_size
            if not (target.exists() and target.stat().st_size == size):
                with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as file:
                    written = Path(file.name)
                    try:
                        shutil.copyfileobj(source, file, CHUNK_BYTES)
                        file.flush()
                        os.fsync(file.fileno())
                        _place(written, target)
                    except BaseException:
                        written.unlink(missing_ok=True)
                        raise
            # Also of an object that was there: who put it may not have come so far yet.
            self._sync_folders(target)
        return key

    def _sync_folders(self, target: Path) -> None:
        for folder in target.parents:
            # A folder that is gone held an object that was deleted again.
            with suppress(FileNotFoundError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            if folder == self._root:
                return

    def direct_put(self, key: str, size: int, sha256: str, seconds: float) -> DirectPut | None:
        """As ObjectStore.direct_put: a directory has no way."""
        del key, size, sha256, seconds
        return None

    def stream(self, key: str, start: int = 0, size: int | None = None) -> Iterator[bytes]:
        """As ObjectStore.stream."""
        with _reaching(self._root):
            try:
                file = (self._root / key).open("rb")
            except FileNotFoundError as error:
                raise self._missing(key) from error
            with file:
                file.seek(start)
                left = os.fstat(file.fileno()).st_size if size is None else size
                while chunk := file.read(min(CHUNK_BYTES, left)):
                    left -= len(chunk)
                    yield chunk

    def part(self, key: str, start: int, size: int) -> bytes:
        """As ObjectStore.part."""
        with _reaching(self._root):
            try:
                with (self._root / key).open("rb") as file:
                    file.seek(start)
                    return file.read(size)
            except FileNotFoundError as error:
                raise self._missing(key) from error

    def size(self, key: str) -> int:
        """As ObjectStore.size."""
        with _reaching(self._root):
            try:
                return (self._root / key).stat().st_size
            except FileNotFoundError as error:
                raise self._missing(key) from error

    def _missing(self, key: str) -> Exception:
        """An empty mount point has no objects either, but that is not for good."""
        return ObjectMissing(key) if self._incoming.is_dir() else self._not_there()

    def _not_there(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self._root} holds no object store; is it mounted?")

    def keys(self, under: str = "") -> Iterator[str]:
        """As ObjectStore.keys; one folder's names are in memory at a time."""
        with _reaching(self._root):
            if not self._incoming.is_dir():
                raise self._not_there()
            for folder, inner, names in os.walk(self._root / under, onerror=self._unless_removed):
                if folder == str(self._root):
                    inner.remove(INCOMING)
                inner.sort()
                place = Path(folder).relative_to(self._root)
                yield from (str(place / name) for name in sorted(names))

    def _unless_removed(self, error: OSError) -> None:
        if not (isinstance(error, FileNotFoundError) and self._incoming.is_dir()):
            raise error

    def delete(self, key: str) -> None:
        """As ObjectStore.delete; folders that it leaves empty go too."""
        target = self._root / key
        with _reaching(self._root):
            target.unlink(missing_ok=True)
            for folder in target.parents:
                if folder == self._root:
                    return
                try:
                    folder.rmdir()
                except OSError:
                    return

    def clean(self, older_than_seconds: float) -> int:
        """As ObjectStore.clean: a put writes to its file all the time, so a silent one has been left."""
        removed = 0
        with _reaching(self._root):
            for file in self._incoming.iterdir():
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime >= older_than_seconds:
                        file.unlink()
                        removed += 1
        return removed

    def check(self) -> None:
        """As ObjectStore.check."""
        if not os.access(self._incoming, os.W_OK):
            raise StoreUnavailable(f"{self._root} cannot be written")


def _place(written: Path, target: Path) -> None:
    for placing in range(1, PLACINGS + 1):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            written.replace(target)
        except (FileNotFoundError, FileExistsError):
            if placing == PLACINGS or not written.exists():
                raise
        else:
            return
