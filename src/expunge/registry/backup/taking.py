"""Takes a backup of a running service: one picture of the database, and every object that its rows name.

The picture comes first and the objects after it: an object never changes, so a copy made later is the
same. One that is gone by then had ended, and so the picture is taken again. Never writes to the store.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.orm import sessionmaker

from expunge.registry import log, references
from expunge.registry.backup import archive, endings, tables
from expunge.registry.backup.archive import (
    Archive,
    BackupRefused,
    LogEnd,
    Manifest,
    Missing,
    ObjectList,
)
from expunge.registry.database import Sessions, sessions
from expunge.registry.migration import newest, revision_of
from expunge.registry.objects import ObjectDamaged, ObjectMissing, ObjectStore
from expunge.registry.record.proofs import newest_head

PICTURES = 10
"""So often a picture is taken anew because objects that it names were gone before they were copied."""
SNAPSHOTS = "snapshots/"
"""What the keys of running trainings begin with: one that comes to nothing costs time, no data."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A backup that is complete, and what it has removed."""

    name: str
    manifest: Manifest
    manifest_sha256: str
    copied: int
    """Objects that were not in the folder, or not whole."""
    outdated: list[str]
    """Backups that were removed because their time was over."""
    damaged: dict[str, list[str]]
    """Objects that are not whole in the folder and that the store has no more, and the backups that name them."""


def take(
    engine: Engine, store: ObjectStore, folder: Path, *, keep_days: float = 0, deep: bool = False
) -> Taken:
    """Add a backup to the folder, which may hold earlier ones; objects that are there are not copied again.

    Afterwards backups older than `keep_days` (0: none) are removed with the objects that no other has.
    With `deep` each object that is there is read, and copied again where it is damaged and the store
    has it. Objects that cannot be had although rows name them are listed in the manifest: the rest is
    worth keeping.

    Raises:
        BackupRefused: the schema is not this program's, or another backup or a migration runs.
        StoreUnavailable, OperationalError: try again later; there is no new backup.
    """
    kept = Archive(folder)
    with kept.locked():
        mended, damaged = _mend(kept, store) if deep else (set(), set())
        taking = _Taking(engine, store, kept, mended, damaged)
        name = taking.run()
        _tell(sessions(engine), kept.manifest(name), name, keep_days)
        outdated = _remove_outdated(kept, keep_days)
        return Taken(
            name,
            kept.manifest(name),
            kept.manifest_sha256(name),
            len(taking.copied),
            outdated,
            _held_by(kept, damaged),
        )


class _Taking:
    def __init__(
        self,
        engine: Engine,
        store: ObjectStore,
        kept: Archive,
        mended: set[str],
        damaged: set[str],
    ) -> None:
        self._engine = engine
        self._sessions = sessions(engine)
        self._store = store
        self._kept = kept
        self._damaged = damaged
        self.copied = mended

    def run(self) -> str:
        with self._engine.connect() as connection:
            _require_own_schema(connection)
        # Nearly everything is copied before the picture, which is then soon taken.
        self._copy(references.every(self._sessions))
        for number in range(PICTURES):
            with tables.picture(self._engine) as connection:
                _require_own_schema(connection)
                missing = self._copy(references.every(_frozen(connection)))
                if self._ended(missing) and number < PICTURES - 1:
                    continue
                return self._write(connection, missing)
        raise AssertionError("the last picture is kept or refused")

    def _copy(self, named: Iterable[tuple[str, str]]) -> list[Missing]:
        """Copy what is not there yet; what could not be had."""
        missing = []
        for key, row in named:
            if key in self.copied:
                continue
            if key in self._damaged:
                missing.append(Missing(key=key, named_by=row, problem="damaged"))
                continue
            try:
                if self._kept.bring(self._store, key):
                    self.copied.add(key)
            except (ObjectMissing, ObjectDamaged) as error:
                problem = "missing" if isinstance(error, ObjectMissing) else "damaged"
                missing.append(Missing(key=key, named_by=row, problem=problem))
        return missing

    def _ended(self, missing: Iterable[Missing]) -> set[str]:
        """Those that no row names any more: they went after the picture."""
        keys = {each.key for each in missing}
        with self._sessions() as session:
            return keys - references.named(session, keys)

    def _write(self, connection: Connection, missing: list[Missing]) -> str:
        lost = {each for each in self._ended(missing) if not each.startswith(SNAPSHOTS)}
        if lost:
            raise BackupRefused(
                f"{len(lost)} objects went while they were being copied, {PICTURES} times in a row; "
                "try again when less is being deleted"
            )
        frozen = _frozen(connection)
        absent = {each.key for each in missing}
        keys = sorted({key for key, _ in references.every(frozen)} - absent)
        with frozen() as session:
            taken_at = session.scalar(select(func.now())) or datetime.now(UTC)
        with self._kept.writing(taken_at) as folder:
            listed = (f"{key}\n".encode() for key in keys)
            _, sha256 = archive.write(folder / archive.OBJECT_LIST, listed)
            size = sum(self._kept.path(key).stat().st_size for key in keys)
            manifest = Manifest(
                taken_at=taken_at,
                expunge=version("expunge"),
                revision=str(revision_of(connection)),
                tables=tables.dump(connection, folder / archive.TABLES),
                objects=ObjectList(count=len(keys), bytes=size, sha256=sha256),
                missing=missing,
                log=_log_end(frozen),
            )
            data = manifest.model_dump_json(indent=1).encode()
            archive.write(folder / archive.MANIFEST, [data])
        endings.note(self._sessions, self._kept)
        return taken_at.astimezone(UTC).strftime(archive.NAME)


def _frozen(connection: Connection) -> Sessions:
    return sessionmaker(connection, expire_on_commit=False)


def _require_own_schema(connection: Connection) -> None:
    revision = revision_of(connection)
    if revision != newest():
        raise BackupRefused(
            f"the database's schema is at revision {revision}, this program at {newest()}: which rows "
            "name objects is known for its own only"
        )


def _log_end(frozen: Sessions) -> LogEnd | None:
    with frozen() as session:
        head = newest_head(session)
    if head is None:
        return None
    return LogEnd(
        size=head.size,
        root_hash=head.root_hash.hex(),
        chain_hash=head.chain_hash.hex(),
        envelope=head.envelope,
    )


def _tell(within: Sessions, manifest: Manifest, name: str, keep_days: float) -> None:
    """In the log, which owners are told from how long copies of their data may be kept."""
    told = {
        "name": name,
        "objects": manifest.objects.count,
        "missing": len(manifest.missing),
        "keep_days": keep_days,
    }
    with within.begin() as session:
        log.append(session, log.SERVICE, log.BACKUP, log.TAKEN, **told)


def _mend(kept: Archive, store: ObjectStore) -> tuple[set[str], set[str]]:
    """Read every object of every backup and copy again what is not whole; these, and those that stay so."""
    mended, damaged = set(), set()
    for key in {key for name in kept.names() for key in kept.keys(name)}:
        if kept.is_whole(key):
            continue
        try:
            kept.renew(store, key)
            mended.add(key)
        except (ObjectMissing, ObjectDamaged):
            damaged.add(key)
    return mended, damaged


def _held_by(kept: Archive, keys: Collection[str]) -> dict[str, list[str]]:
    """The backups that have each of these objects."""
    found: dict[str, list[str]] = {}
    for name in kept.names() if keys else ():
        for key in kept.keys(name):
            if key in keys:
                found.setdefault(key, []).append(name)
    return found


def _remove_outdated(kept: Archive, keep_days: float) -> list[str]:
    *earlier, _ = kept.names()
    oldest = datetime.now(UTC) - timedelta(days=keep_days)
    outdated = [name for name in earlier if keep_days and _taken_at(name) < oldest]
    for name in outdated:
        kept.remove(name)
    kept.prune()
    return outdated


def _taken_at(name: str) -> datetime:
    return datetime.strptime(name, archive.NAME).replace(tzinfo=UTC)
