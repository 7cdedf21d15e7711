"""A service in small whose objects are there: what is backed up, restored and checked. No HTTP, no worker."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, text, update
from sqlalchemy.engine import URL
from tests.conftest import execute, text_of
from tests.registry.conftest import House

from expunge.registry import backup, checkpoints, datasets, deletion, destruction, jobs, orphans
from expunge.registry.checkpoints import StoredWeights
from expunge.registry.database import Sessions, connect
from expunge.registry.objects import DirectoryStore
from expunge.registry.record import sealing
from expunge.registry.tables import Checkpoint, Dataset, Job, Party, Role, Table
from expunge.registry.transitions import move

_numbers = itertools.count()


class WatchedStore(DirectoryStore):
    """Calls back before an object is read for the first time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.before: dict[str, Callable[[], None]] = {}

    def stream(self, key: str) -> Iterator[bytes]:
        self.before.pop(key, lambda: None)()
        return super().stream(key)


@dataclass
class Service:
    """A model with data of two owners whose objects are there, a job that runs and one that waits."""

    house: House
    store: WatchedStore
    folder: Path
    model_owner: Party
    owner: Party
    model: str = ""
    sets: list[str] = field(default_factory=list)
    lease: jobs.Lease | None = None

    @property
    def sessions(self) -> Sessions:
        return self.house.sessions

    @property
    def kept(self) -> Path:
        """Where backups go."""
        return self.folder / "backups"

    def put(self, data: str) -> str:
        return orphans.put_bytes(self.sessions, self.store, data.encode(), self.folder)

    def sealed(self, *, granted: bool = True) -> str:
        """A data set of an owner, whose index is a stored object."""
        key = self.put(f"index {next(_numbers)}")
        with self.sessions.begin() as session:
            row = datasets.create(session, self.owner, f"images {next(_numbers)}")
            move(session, row, "sealing")
            move(session, row, "sealed", digest="sha256:0", index_key=key)
            orphans.named(session, [key])
            if granted:
                datasets.grant(session, self.owner, row.id, self.model_owner.id)
            return row.id

    def key_of(self, dataset_id: str) -> str:
        with self.sessions() as session:
            return str(session.get_one(Dataset, dataset_id).index_key)

    def size_of(self, key: str) -> int | None:
        """What the row of a checkpoint says; none for another object."""
        with self.sessions() as session:
            sizes = select(Checkpoint.bytes).where(Checkpoint.object_key == key)
            return session.scalar(sizes)

    def train(self, dataset_ids: list[str]) -> None:
        lease = self.house.claim(self.house.pretraining(self.model_owner, self.model, dataset_ids))
        data = f"weights {next(_numbers)}"
        key, release = self.put(data), self.put(f"release of {data}")
        with self.sessions.begin() as session:
            checkpoints.record_pretrained(
                session, lease, StoredWeights(key, key, len(data), release, release), {}
            )

    def delete(self, dataset_id: str) -> None:
        with self.sessions.begin() as session:
            deletion.start(session, self.owner, dataset_id)
        destruction.finish(self.sessions, self.store, dataset_id)

    def seal_log(self) -> None:
        with self.sessions.begin() as session:
            sealing.seal(session, None)

    def backup(self, **options: Any) -> backup.Taken:
        return backup.take(self.engine, self.store, self.kept, **options)

    @property
    def engine(self) -> Engine:
        engine: Engine = self.sessions.kw["bind"]
        return engine


@contextmanager
def database(postgres: URL, name: str) -> Iterator[Engine]:
    """One with the newest schema and no rows."""
    execute(postgres, f"CREATE DATABASE {name} TEMPLATE template_expunge")
    engine = connect(text_of(postgres.set(database=name)))
    yield engine
    engine.dispose()
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def running(house: House, folder: Path) -> Iterator[Service]:
    """One whose rows are gone afterwards."""
    service = Service(
        house,
        WatchedStore(folder / "objects"),
        folder,
        house.party(Role.MODEL_OWNER),
        house.party(Role.DATA_OWNER),
    )
    service.model = house.model(service.model_owner)
    service.sets = [service.sealed(), service.sealed()]
    service.train(service.sets)
    job = house.request(house.ask(service.owner, service.model, service.sets[0])).job_id
    service.lease = house.claim(str(job))
    house.seal_job(service.owner)
    with service.sessions.begin() as session:
        session.execute(update(Job).where(Job.state == "queued").values(published_at=Job.due_at))
        jobs.note_snapshot(session, service.lease, service.put("a snapshot"), 5)
    service.seal_log()
    yield service
    with service.engine.begin() as connection:
        # Without the triggers that keep the record from being changed.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        tables = ", ".join(table.name for table in Table.metadata.sorted_tables)
        connection.execute(text(f"TRUNCATE {tables}"))
