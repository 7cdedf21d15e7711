"""Restores a backup into an empty database: objects, and then rows with what keeps two lives of a service apart.

Attempts that were running when the backup was taken lose their lease: their workers, which may live on,
write nothing any more, and the jobs wait for a worker again. What has ended since ends again. All of it
comes with the rows or no row does.
"""

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine, update
from sqlalchemy.orm import Session, sessionmaker

from expunge.registry import jobs, log, references
from expunge.registry.backup import archive, endings, tables
from expunge.registry.backup.archive import Archive, BackupRefused, LogEnd, Manifest
from expunge.registry.database import Sessions, sessions
from expunge.registry.fsck import record
from expunge.registry.lifecycles import JobState
from expunge.registry.migration import (
    alone,
    is_known,
    migrate_within,
    newest,
    remove_within,
    revision_of,
)
from expunge.registry.objects import ObjectMissing, ObjectStore
from expunge.registry.record.proofs import newest_head
from expunge.registry.tables import Job

RESTORED = "the service was restored from a backup"
"""Why a job that was running waits again."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back."""

    name: str
    manifest: Manifest
    requeued: list[str]
    """Jobs that were running."""
    held: dict[str, str]
    """What had ended since and is there again, since something needs it: why, by its id."""
    put: int
    """Objects that the store did not have."""
    damaged: list[str]
    """Objects that the backup has no more as they were, and that were left out."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What was put back."""

    put: int
    """Objects that the store did not have, or not whole."""
    damaged: list[str]
    """Objects that the backup has no more as they were."""


class _Damaged(Exception):
    """The folder has an object no more as it was."""


def restore(
    engine: Engine,
    store: ObjectStore,
    folder: Path,
    *,
    name: str | None = None,
    manifest_sha256: str | None = None,
    add_to_store: bool = False,
    without_damaged: bool = False,
    keep_days: float = 0,
) -> Restored:
    """Restore the backup of that name, the newest if none is named; nothing else may use the database meanwhile.

    The database must be empty, and the store as well unless `add_to_store`: what is there then stays,
    and damaged objects are replaced. Objects that neither the folder nor the store has whole are left
    out if `without_damaged`, else they are a reason to refuse. `keep_days` (0: no time is set) is what
    owners are told of how long backups are kept, as in `take`.

    Rows come in one transaction with all that must be done about them: if it breaks off, at any moment,
    the database has no row. While it reads, no backup is made to the folder.

    Raises:
        BackupRefused: it cannot be restored, and why; the database is as empty as before, unless the
            words say otherwise.
        StoreUnavailable, OperationalError: begin again, `add_to_store`.
    """
    kept = Archive(folder)
    with kept.reading():
        name = name or _newest(kept)
        manifest = kept.manifest(name)
        _check_backup(kept, name, manifest, manifest_sha256)
        # Here, and once more below, since that is hours later: what is refused is refused at once.
        endings.read(kept)
        with engine.connect() as connection:
            tables.require_empty(connection)
        if not add_to_store and next(iter(store.keys()), None) is not None:
            raise BackupRefused(
                "the object store is not empty; take an empty one, or add to it with --add-to-store"
            )
        put, damaged = _put_all(kept, store, name, without_damaged=without_damaged)
        absent = {each.key for each in manifest.missing}.union(damaged)
        with engine.connect() as connection, alone(connection, math.inf):
            with connection.begin():
                _bring_schema(connection, manifest.revision)
            # Others see no row, or all of them with what has ended and without a lease.
            with connection.begin():
                tables.load(connection, manifest.tables, kept.place(name) / archive.TABLES)
                if manifest.revision != newest():
                    migrate_within(connection)
                within = sessionmaker(
                    connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
                )
                requeued = _fence(within, manifest, absent, keep_days)
                held = endings.again(within, endings.read(kept))
    _check_log(engine, manifest.log)
    return Restored(name, manifest, requeued, held, put, damaged)


def mend(engine: Engine, store: ObjectStore, folder: Path, *, name: str | None = None) -> Mended:
    """Put back, of the objects that rows name now, those that the store lost or that are damaged there.

    Rows stay as they are. Each object is read. One that ends in this moment is left to the next sweep.

    Raises:
        BackupRefused: there is no such backup, or one is being made.
        StoreUnavailable, OperationalError: do it again.
    """
    kept = Archive(folder)
    within, put, damaged = sessions(engine), 0, []
    with kept.reading():
        there = set(kept.keys(name or _newest(kept)))
        wanted = {key for key, _ in references.every(within)}
        for key in sorted(there & wanted):
            with within() as session:
                # Reading all of them takes hours, in which some may have ended.
                is_wanted = bool(references.named(session, [key]))
            try:
                put += is_wanted and _put(kept, store, key)
            except _Damaged:
                damaged.append(key)
    return Mended(put, damaged)


def _newest(kept: Archive) -> str:
    names = kept.names()
    if not names:
        raise BackupRefused(f"{kept.folder} holds no complete backup")
    return names[-1]


def _check_backup(
    kept: Archive, name: str, manifest: Manifest, manifest_sha256: str | None
) -> None:
    if manifest_sha256 is not None and kept.manifest_sha256(name) != manifest_sha256:
        raise BackupRefused(f"the manifest of {name} is not the one with that digest")
    if not is_known(manifest.revision):
        raise BackupRefused(
            f"the backup has a schema of revision {manifest.revision}, which this program does not "
            f"know; it was taken by expunge {manifest.expunge}"
        )
    place = kept.place(name)
    archive.check_files(place, {archive.OBJECT_LIST: manifest.objects.sha256})
    files = {tables.file_name(table): file.sha256 for table, file in manifest.tables.items()}
    archive.check_files(place / archive.TABLES, files)


def _put_all(
    kept: Archive, store: ObjectStore, name: str, *, without_damaged: bool
) -> tuple[int, list[str]]:
    """Put the backup's objects; how many the store did not have whole, and those that nothing has."""
    put, damaged = 0, []
    for key in kept.keys(name):
        try:
            put += _put(kept, store, key)
        except _Damaged as error:
            if not without_damaged:
                raise BackupRefused(
                    f"{error}; restore another backup, or this one --without-damaged"
                ) from error
            damaged.append(key)
    return put, damaged


def _put(kept: Archive, store: ObjectStore, key: str) -> bool:
    """Put one object where it was; whether the store did not have it whole.

    Raises:
        _Damaged: neither the folder nor the store has it.
    """
    under, _, sha256 = key.rpartition("/")
    is_whole = _is_whole(store, key)
    if is_whole:
        return False
    if not kept.is_whole(key):
        raise _Damaged(f"object {key} of the backup is missing or damaged")
    if is_whole is False:
        store.delete(key)
    store.put(kept.path(key), sha256, under=under)
    return True


def _is_whole(store: ObjectStore, key: str) -> bool | None:
    """None where there is no object."""
    hashed = hashlib.sha256()
    try:
        for chunk in store.stream(key):
            hashed.update(chunk)
    except ObjectMissing:
        return None
    return key.endswith(hashed.hexdigest())


def _bring_schema(connection: Connection, revision: str) -> None:
    """The schema that the rows had; an empty newer one gives way to it.

    Raises:
        BackupRefused: another restore has been here meanwhile.
    """
    tables.require_empty(connection)
    present = revision_of(connection)
    if present == revision:
        return
    if present is not None:
        remove_within(connection)
    migrate_within(connection, revision)


def _fence(
    within: Sessions, manifest: Manifest, absent: Collection[str], keep_days: float
) -> list[str]:
    """Take all leases away, announce anew what waits, and tell of it in the log; `absent` are keys of objects."""
    with within.begin() as session:
        requeued = jobs.take_back(session, reason=RESTORED)
        waiting = update(Job).where(Job.state == JobState.QUEUED)
        session.execute(waiting.values(published_at=None))
        session.execute(update(Job).where(Job.snapshot_key.in_(absent)).values(**jobs.NO_SNAPSHOT))
        told = {
            "taken_at": manifest.taken_at.isoformat(),
            "log_size": 0 if manifest.log is None else manifest.log.size,
            "requeued": len(requeued),
            # That this backup was taken came after its picture.
            "keep_days": keep_days,
        }
        log.append(session, log.SERVICE, log.BACKUP, log.RESTORED, **told)
    return requeued


def _check_log(engine: Engine, end: LogEnd | None) -> None:
    found = record.check(engine)
    if found.broken is not None:
        raise BackupRefused(f"rows are restored, but the log is broken: {found.broken.link}")
    with Session(engine) as session:
        head = newest_head(session)
    stated = None if head is None else (head.size, head.root_hash.hex(), head.chain_hash.hex())
    expected = None if end is None else (end.size, end.root_hash, end.chain_hash)
    if stated != expected:
        raise BackupRefused("rows are restored, but the log ends otherwise than the manifest says")
