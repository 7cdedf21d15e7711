"""Objects in a store and the rows that name them, for tests of the sweep: no rules of the registry in between."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, text, update

from expunge.formats.digests import sha256_file
from expunge.registry import orphans
from expunge.registry.database import Sessions
from expunge.registry.jobs import Lease
from expunge.registry.objects import DirectoryStore, ObjectStore, StoreUnavailable
from expunge.registry.tables import (
    Dataset,
    Job,
    JobKind,
    LogRow,
    Party,
    PendingObject,
    Role,
    Shard,
    Table,
)

GRACE_SECONDS = 60

_numbers = itertools.count()


@dataclass
class Archive:
    """A store and rows that name its objects, written in plain SQL."""

    sessions: Sessions
    store: ObjectStore
    folder: Path

    def add(self, row: Table) -> Any:
        with self.sessions.begin() as session:
            session.add(row)
        return row

    def party(self) -> str:
        return str(self.add(Party(id=new("pty"), name=new("name"), role=Role.DATA_OWNER)).id)

    def dataset(self, **values: Any) -> str:
        values = {"owner_id": self.party(), "state": "open", "name": "images"} | values
        return str(self.add(Dataset(id=new("dst"), **values)).id)

    def job(self, kind: JobKind = JobKind.SEAL, **values: Any) -> str:
        values = {"owner_id": self.party(), "state": "queued", "params": {}} | values
        return str(self.add(Job(id=new("job"), kind=kind, **values)).id)

    def lease(self) -> Lease:
        token = new("token")
        return Lease(self.job(state="running", lease_token=token), JobKind.SEAL, token, 1)

    def lose(self, lease: Lease) -> None:
        with self.sessions.begin() as session:
            ended = update(Job).where(Job.id == lease.job_id)
            session.execute(ended.values(state="queued", lease_token=None))

    def put(self, data: bytes, **values: Any) -> str:
        return orphans.put_bytes(self.sessions, self.store, data, self.folder, **values)

    def stray(self, data: bytes) -> str:
        """An object without a note, as a deleted row leaves it."""
        path = self.folder / new("stray")
        path.write_bytes(data)
        return self.store.put(path, sha256_file(path))

    def name(self, key: str, dataset: str, shard: str = "a.tar") -> None:
        """Record the key as the data set's shard, replacing one of the same name."""
        with self.sessions.begin() as session:
            row = Shard(dataset_id=dataset, name=shard, digest="", bytes=0, samples=0)
            row.object_key = key
            session.merge(row)
            orphans.named(session, [key])

    def unname(self, shard: str = "a.tar", dataset: str | None = None) -> None:
        with self.sessions.begin() as session:
            rows = delete(Shard).where(Shard.name == shard)
            session.execute(rows if dataset is None else rows.where(Shard.dataset_id == dataset))

    def named(self) -> list[str]:
        with self.sessions() as session:
            return sorted(set(session.scalars(select(Shard.object_key))))

    def let_pass(self, seconds: float) -> None:
        with self.sessions.begin() as session:
            earlier = func.now() - text(f"interval '{seconds} seconds'")
            session.execute(update(PendingObject).values(noted_at=earlier))

    def sweep(self, grace_seconds: float = GRACE_SECONDS) -> orphans.Swept:
        return orphans.sweep(self.sessions, self.store, grace_seconds=grace_seconds)

    def check(self, *, deep: bool = False) -> list[orphans.Broken]:
        return list(orphans.check(self.sessions, self.store, deep=deep))

    def keys(self) -> list[str]:
        return sorted(self.store.keys())

    def notes(self) -> dict[str, str | None]:
        with self.sessions() as session:
            return dict(session.execute(select(PendingObject.key, PendingObject.lease_token)).all())


def new(prefix: str) -> str:
    return f"{prefix}_{next(_numbers)}"


def logged(sessions: Sessions, after: int = 0) -> list[dict[str, Any]]:
    with sessions() as session:
        rows = select(LogRow.detail).where(LogRow.subject_id == "objects", LogRow.seq > after)
        return list(session.scalars(rows.order_by(LogRow.seq)))


def newest_log(sessions: Sessions) -> int:
    with sessions() as session:
        return session.scalar(select(func.max(LogRow.seq))) or 0


def emptied(sessions: Sessions) -> Sessions:
    """The same, after all rows that name objects are gone."""
    with sessions.begin() as session:
        # Without the triggers that keep certificates from being changed.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        session.execute(text("TRUNCATE parties, pending_objects CASCADE"))
    return sessions


class LateStore(DirectoryStore):
    """Behind a network that stalls: who deletes hears that the store is away, and it is done later all the same."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._late: list[str] = []

    def delete(self, key: str) -> None:
        self._late.append(key)
        raise StoreUnavailable(key)

    def catch_up(self) -> None:
        while self._late:
            super().delete(self._late.pop())
