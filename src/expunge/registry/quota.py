"""How many bytes a party may have stored: shards, announced direct uploads, uploaded checkpoints.

Looked at before and while bytes come, so that few come in vain, and again where they are recorded: there
a lock of the party's makes the sum exact. What jobs make of them is not counted.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from expunge.registry import orphans
from expunge.registry.database import Sessions
from expunge.registry.direct_uploads import OCCUPIES
from expunge.registry.errors import DomainError
from expunge.registry.lifecycles import DatasetState
from expunge.registry.migration import newest, revision_of
from expunge.registry.objects import ObjectStore
from expunge.registry.tables import Checkpoint, Dataset, DirectUpload, Model


class QuotaExceeded(DomainError):
    """The party would have more bytes stored than it may."""

    slug, title, status = "quota-exceeded", "Storage quota exceeded", 413


@dataclass(frozen=True, slots=True)
class Room:
    """What a party may have stored and what it has, in bytes; a limit of 0 is none."""

    limit: int
    used: int

    def require(self, asked: int) -> None:
        """Raise QuotaExceeded unless so many bytes more may be stored."""
        if self.limit and self.used + asked > self.limit:
            raise QuotaExceeded(
                f"You may have {self.limit:,} bytes stored, {self.used:,} are, and these are "
                f"{asked:,}: delete data sets that you no longer need, or ask the operator for more.",
                limit=self.limit,
                used=self.used,
                asked=asked,
            )


ANY = Room(limit=0, used=0)
"""For what does not count."""


_SHARDS = select(func.sum(Dataset.bytes)).where(
    Dataset.owner_id == bindparam("party_id"), Dataset.state != DatasetState.DELETED
)
_ANNOUNCED = (
    select(func.sum(DirectUpload.bytes))
    .join(Dataset, Dataset.id == DirectUpload.dataset_id)
    .where(Dataset.owner_id == bindparam("party_id"), OCCUPIES)
)
_WEIGHTS = (
    select(func.sum(Checkpoint.bytes))
    .join(Model, Model.id == Checkpoint.model_id)
    .where(
        Model.owner_id == bindparam("party_id"),
        Checkpoint.job_id.is_(None),
        Checkpoint.destroyed_at.is_(None),
    )
)
# Built once: that takes longer than running it.
_SUMS = select(
    *(func.coalesce(each.scalar_subquery(), 0) for each in (_SHARDS, _ANNOUNCED, _WEIGHTS))
)


def room(session: Session, party_id: str, limit: int, *, replaced: int = 0) -> Room:
    """As things stand; `replaced` bytes are about to go."""
    return Room(limit, used(session, party_id) - replaced)


def used(session: Session, party_id: str) -> int:
    """Bytes that count for a party now."""
    return int(sum(session.execute(_SUMS, {"party_id": party_id}).one()))


@contextmanager
def kept(session: Session, party_id: str, limit: int) -> Iterator[None]:
    """Around what records bytes of a party: of several at once, none may exceed the limit.

    Raises:
        QuotaExceeded: the party would have more than the limit, and more than before.
    """
    if not limit:
        yield
        return
    lock = func.hashtextextended(f"quota {party_id}", 0)
    session.execute(select(func.pg_advisory_xact_lock(lock)))
    before = used(session, party_id)
    yield
    session.flush()
    grown = used(session, party_id) - before
    if grown > 0:
        Room(limit, before).require(grown)


def discard(sessions: Sessions, store: ObjectStore, keys: Collection[str]) -> None:
    """Remove objects that nothing names any more, or was allowed to, without waiting for a sweep.

    Otherwise somebody who replaces a shard again and again would have all of them stored for the
    grace period. Left to a sweep where a newer version's rows may name them.

    Raises:
        StoreUnavailable: a sweep removes them then.
    """
    with sessions() as session:
        if revision_of(session.connection()) != newest():
            return
    orphans.destroy(sessions, store, keys)
