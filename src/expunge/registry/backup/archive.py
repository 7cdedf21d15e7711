"""The folder that backups lie in: one place for objects, which all backups share, and a folder for each backup.

Knows files and digests only, nothing of what they mean.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict

from expunge.formats.digests import sha256_file
from expunge.registry.objects import ObjectDamaged, ObjectStore, fetch

FORMAT: Literal["expunge-backup-1"] = "expunge-backup-1"
MANIFEST = "manifest.json"
OBJECT_LIST = "objects.txt"
TABLES = "tables"
"""Folder of a backup's rows."""
ENDINGS = "endings.json"
NAME = "%Y%m%dT%H%M%S.%fZ"
"""Of a backup: when its picture of the database was taken (UTC)."""
LOCK = "lock"
"""Held by who writes to the folder, and shared by those who read all of it."""
ENDINGS_LOCK = "endings.lock"
"""Held by who writes the endings alone."""
WAIT_SECONDS = 60.0
"""For somebody else's lock: two timers may start in the same second."""
LOOK_SECONDS = 0.1
"""Between two looks whether a lock is free."""
UNFINISHED = ".unfinished-"
KEY = re.compile(r"(?!.*(^|/)\.{0,2}(/|$))[\w.-]+(/[\w.-]+)*/[0-9a-f]{64}")
"""What the key of an object looks like: it ends in a digest, and leads out of no folder."""


class BackupRefused(Exception):
    """A backup cannot be made, read or restored; the words say why and what to do."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableFile(_Part):
    """The rows of one table, as PostgreSQL's COPY writes them as text."""

    columns: list[str]
    rows: int
    bytes: int
    sha256: str


class ObjectList(_Part):
    """The objects that the backup's rows name: a file with one key a line."""

    count: int
    bytes: int
    """Of all objects together."""
    sha256: str
    """Of the list."""


class Missing(_Part):
    """An object that a row names and that could not be copied."""

    key: str
    named_by: str
    problem: str


class LogEnd(_Part):
    """How far the log goes, as its newest tree head states it; hashes in hexadecimal."""

    size: int
    root_hash: str
    chain_hash: str
    envelope: dict[str, Any] | None


class Manifest(_Part):
    """What one backup consists of."""

    format: Literal["expunge-backup-1"] = FORMAT
    taken_at: datetime
    expunge: str
    revision: str
    """Of the schema."""
    tables: dict[str, TableFile]
    objects: ObjectList
    missing: list[Missing]
    log: LogEnd | None
    """None: nothing was sealed yet."""


class Archive:
    """A folder with backups, for nobody else to read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / "objects"
        self._backups = folder / "backups"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from writing to the folder or reading all of it; it is made if it is not there.

        Raises:
            BackupRefused: somebody does, and went on for WAIT_SECONDS.
        """
        for each in (self.folder, self._objects, self._backups):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / LOCK).open("a") as lock:
            _lock(lock, fcntl.LOCK_EX, f"another backup to {self.folder}, or a restore from it,")
            for left in self._backups.glob(f"{UNFINISHED}*"):
                shutil.rmtree(left)
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep others from writing to the folder, but for endings: what is being read would be removed.

        Raises:
            BackupRefused: somebody writes, and went on for WAIT_SECONDS.
        """
        # A copy of the folder may lack it, and where nobody can write it is not needed.
        with suppress(OSError):
            (self.folder / LOCK).touch()
        if not (self.folder / LOCK).exists():
            yield
            return
        with (self.folder / LOCK).open() as lock:
            _lock(lock, fcntl.LOCK_SH, f"a backup to {self.folder}")
            yield

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Keep others from writing the endings, also while a backup runs, which takes hours.

        Raises:
            BackupRefused: somebody does, and went on for WAIT_SECONDS.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / ENDINGS_LOCK).open("a") as lock:
            _lock(lock, fcntl.LOCK_EX, f"another note of what has ended in {self.folder}")
            yield

    # Backups.

    def names(self) -> list[str]:
        """The complete backups, oldest first."""
        return sorted(each.parent.name for each in self._backups.glob(f"[0-9]*/{MANIFEST}"))

    def place(self, name: str) -> Path:
        """The folder of a backup."""
        return self._backups / name

    @contextmanager
    def writing(self, taken_at: datetime) -> Iterator[Path]:
        """A folder that becomes the backup of that time when the block ends; after an error there is none."""
        name = taken_at.astimezone(UTC).strftime(NAME)
        folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=self._backups))
        try:
            (folder / TABLES).mkdir()
            yield folder
            for each in (folder / TABLES, folder):
                _sync(each)
            folder.rename(self._backups / name)
            _sync(self._backups)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def manifest(self, name: str) -> Manifest:
        """What the backup consists of.

        Raises:
            BackupRefused: there is no such backup, or it is none that this program can read.
        """
        try:
            return Manifest.model_validate_json((self.place(name) / MANIFEST).read_bytes())
        except FileNotFoundError as error:
            raise BackupRefused(f"{self.folder} has no backup {name}") from error
        except ValueError as error:
            raise BackupRefused(f"backup {name} cannot be read: {error}") from error

    def manifest_sha256(self, name: str) -> str:
        """Digest of the manifest, and with it of the whole backup."""
        return sha256_file(self.place(name) / MANIFEST)

    def keys(self, name: str) -> Iterator[str]:
        """The keys of the backup's objects."""
        with (self.place(name) / OBJECT_LIST).open() as file:
            for line in file:
                yield line.rstrip("\n")

    def remove(self, name: str) -> None:
        """Remove a backup; objects that it shares with others stay (see `prune`)."""
        shutil.rmtree(self.place(name))

    # Objects.

    def path(self, key: str) -> Path:
        """Where an object lies.

        Raises:
            BackupRefused: that is no key.
        """
        if not KEY.fullmatch(key):
            raise BackupRefused(f"{key!r} is no key of an object")
        return self._objects / key

    def bring(self, store: ObjectStore, key: str) -> bool:
        """Copy an object of the store here, its digest checked, unless it is here already; whether it was copied.

        Raises:
            ObjectMissing, ObjectDamaged, StoreUnavailable: it is not here.
        """
        if not KEY.fullmatch(key):
            raise ObjectDamaged(f"{key!r} is no key of an object")
        if self.path(key).exists():
            return False
        self.renew(store, key)
        return True

    def renew(self, store: ObjectStore, key: str) -> None:
        """Copy an object of the store here, in place of what is here; without an error it is whole then.

        What cannot be copied stays as it is: part of it may be of use, the next reading may be luckier.

        Raises:
            ObjectMissing, ObjectDamaged, StoreUnavailable: it is as it was.
        """
        path = self.path(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.unfinished")
        fetch(store, key, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.rename(path)

    def is_whole(self, key: str) -> bool:
        """Whether the object here is what it was, read to its last byte."""
        try:
            return key.endswith(sha256_file(self.path(key)))
        # It is not there, or its disk says so.
        except OSError:
            return False

    def prune(self) -> int:
        """Remove the objects that no backup has, and what broken copies left; how many."""
        needed = {key for name in self.names() for key in self.keys(name)}
        removed = 0
        for folder, _, names in os.walk(self._objects, topdown=False):
            for name in names:
                path = Path(folder) / name
                if str(path.relative_to(self._objects)) not in needed:
                    path.unlink()
                    removed += 1
            if folder != str(self._objects) and not os.listdir(folder):  # noqa: PTH208 - as walked
                Path(folder).rmdir()
        return removed

    # Endings.

    @property
    def endings(self) -> Path:
        """The file that says what has ended for good, whichever backup is restored."""
        return self.folder / ENDINGS


def write(path: Path, chunks: Iterable[bytes]) -> tuple[int, str]:
    """Write a file for good; its size in bytes and SHA-256."""
    hashed, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            hashed.update(chunk)
            size += len(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return size, hashed.hexdigest()


def replace(path: Path, data: bytes) -> None:
    """Write a file in place of another one, in one moment."""
    beside = path.with_name(f"{path.name}.new")
    write(beside, [data])
    beside.rename(path)
    _sync(path.parent)


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise BackupRefused unless each of the folder's files (by name) has its SHA-256."""
    for name, sha256 in expected.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != sha256:
            raise BackupRefused(f"{path} is missing or damaged; restore another backup")


def _lock(file: IO[str], kind: int, what: str) -> None:
    """Take a lock, of a file that is open, until it is closed."""
    until = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise BackupRefused(f"{what} is running; try again later") from error
            time.sleep(LOOK_SECONDS)
        else:
            return


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
