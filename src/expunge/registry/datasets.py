"""Data sets: shards come in, sealing fixes them, grants let a model owner train. Never decodes an image."""

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from expunge.formats.shards import SampleRecord
from expunge.registry import idempotency, jobs, log, orphans, retention, visibility, waiting
from expunge.registry.errors import Conflict, NotFound, NotSealed
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import DatasetState
from expunge.registry.objects import ObjectStore, verified
from expunge.registry.tables import Dataset, Grant, Job, JobKind, Party, Role, Shard
from expunge.registry.transitions import move


@dataclass(frozen=True, slots=True)
class StoredShard:
    """An uploaded shard whose bytes are in the object store already."""

    name: str
    digest: str
    bytes: int
    samples: int
    object_key: str


def create(
    session: Session, owner: Party, name: str, *, idempotency_key: str | None = None
) -> Dataset:
    """Open a new data set; with the key and name of an earlier call, that call's one.

    Raises:
        IdempotencyConflict: the key was used with other content.
        Conflict: the owner has one of that name.
    """
    dataset_id = new_id(Prefix.DATASET)
    call = idempotency.Call(owner.id, idempotency_key, "create-dataset", [name])
    if earlier := idempotency.remember(session, call, dataset_id):
        return session.get_one(Dataset, earlier)
    if session.scalar(select(Dataset.id).where(Dataset.owner_id == owner.id, Dataset.name == name)):
        raise Conflict(f"You have a data set named {name!r} already.")
    dataset = Dataset(id=dataset_id, owner_id=owner.id, name=name)
    session.add(dataset)
    session.flush()
    log.append(session, owner.id, dataset.id, "created")
    return dataset


def owned(session: Session, owner: Party, dataset_id: str, *, lock: bool = False) -> Dataset:
    """A data set of this owner, row-locked on demand.

    Raises:
        NotFound: there is none, or it belongs to another party.
    """
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.owner_id == owner.id)
    dataset = session.scalar(query.with_for_update(of=Dataset) if lock else query)
    if dataset is None:
        raise NotFound.of("data set", dataset_id)
    return dataset


def check_accepts_shards(dataset: Dataset) -> None:
    """Raise Conflict unless shards may be added to the data set now."""
    if gone := retention.deleted(dataset):
        raise gone
    if dataset.state not in (DatasetState.OPEN, DatasetState.INVALID):
        raise Conflict(
            f"Data set {dataset.id} is {dataset.state}; shards are accepted while it is open.",
            state=dataset.state,
        )


def add_shard(session: Session, owner: Party, dataset_id: str, shard: StoredShard) -> Shard:
    """Record an uploaded shard; one of the same name is replaced, and an invalid data set is open again.

    Raises:
        NotFound: not an own data set.
        Conflict: it is sealing or sealed.
    """
    dataset = owned(session, owner, dataset_id, lock=True)
    check_accepts_shards(dataset)
    row = session.merge(
        Shard(
            dataset_id=dataset.id,
            name=shard.name,
            digest=shard.digest,
            bytes=shard.bytes,
            samples=shard.samples,
            object_key=shard.object_key,
        )
    )
    session.flush()
    orphans.named(session, [shard.object_key])
    session.refresh(dataset)
    dataset.samples = sum(each.samples for each in dataset.shards)
    dataset.bytes = sum(each.bytes for each in dataset.shards)
    if dataset.state == DatasetState.INVALID:
        move(session, dataset, DatasetState.OPEN, actor=owner.id, problem=None)
    log.append(session, owner.id, dataset.id, "shard-stored", name=shard.name, digest=shard.digest)
    return row


def start_sealing(session: Session, owner: Party, dataset_id: str) -> tuple[Dataset, Job | None]:
    """Have a worker validate the data set; a sealing or sealed one is left as it is.

    Raises:
        NotFound: not an own data set.
        Conflict: it has no shard.
    """
    dataset = owned(session, owner, dataset_id, lock=True)
    if dataset.state in (DatasetState.SEALING, DatasetState.SEALED):
        return dataset, None
    if gone := retention.deleted(dataset):
        raise gone
    if not dataset.shards:
        raise Conflict(f"Data set {dataset.id} has no shard; upload one first.")
    move(session, dataset, DatasetState.SEALING, actor=owner.id, problem=None)
    job = waiting.enqueue(
        session,
        JobKind.SEAL,
        actor=owner.id,
        owner_id=owner.id,
        params={},
        dataset_id=dataset.id,
    )
    return dataset, job


def record_sealed(
    session: Session, lease: jobs.Lease, *, digest: str, index_key: str, samples: int
) -> None:
    """Fix the data set with the digest of its index and end the seal job.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = jobs.succeed(session, lease)
    orphans.named(session, [index_key])
    move(
        session,
        session.get_one(Dataset, job.dataset_id),
        DatasetState.SEALED,
        digest=digest,
        index_key=index_key,
        samples=samples,
        sealed_at=func.now(),
    )


def record_invalid(session: Session, lease: jobs.Lease, problem: dict[str, Any]) -> None:
    """Note why the data set cannot be sealed and end the seal job, which did its work.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = jobs.succeed(session, lease)
    move(session, session.get_one(Dataset, job.dataset_id), DatasetState.INVALID, problem=problem)


def grant(session: Session, owner: Party, dataset_id: str, party_id: str) -> Grant:
    """Let a model owner train on the data set; granting again changes nothing.

    Raises:
        NotFound: not an own data set, or no such model owner.
        DatasetDeleted: its owner deleted it.
    """
    dataset = owned(session, owner, dataset_id, lock=True)
    if gone := retention.deleted(dataset):
        raise gone
    grantee = session.get(Party, party_id)
    if grantee is None or grantee.role != Role.MODEL_OWNER:
        raise NotFound.of("model owner", party_id)
    existing = session.get(Grant, (dataset.id, party_id))
    if existing is not None:
        return existing
    row = Grant(dataset_id=dataset.id, party_id=party_id)
    session.add(row)
    session.flush()
    log.append(session, owner.id, dataset.id, "granted", party_id=party_id)
    return row


def withdraw_grant(session: Session, owner: Party, dataset_id: str, party_id: str) -> None:
    """End a grant: no new training may use the data set. What was trained stays until it is unlearned.

    Raises:
        NotFound: not an own data set, or no such grant.
    """
    dataset = owned(session, owner, dataset_id)
    row = session.get(Grant, (dataset.id, party_id))
    if row is None:
        raise NotFound.of("grant for party", party_id)
    session.delete(row)
    log.append(session, owner.id, dataset.id, "grant-withdrawn", party_id=party_id)


def usable(session: Session, party: Party, dataset_ids: Sequence[str]) -> list[Dataset]:
    """The sealed data sets of these ids that the party owns or was granted, in the given order.

    They cannot be deleted before the session's transaction, which records what uses them, has ended.

    Raises:
        NotFound: one is unknown or another party's (all such ids are named).
        NotSealed, DatasetDeleted: one is not sealed yet, or deleted.
    """
    seen = visibility.datasets(party).where(Dataset.id.in_(dataset_ids)).order_by(Dataset.id)
    shared = seen.with_for_update(read=True, of=Dataset)
    rows = session.scalars(shared.execution_options(populate_existing=True)).all()
    found = {row.id: row for row in rows}
    if missing := [each for each in dataset_ids if each not in found]:
        raise NotFound.of("data set", missing)
    require_sealed(rows)
    return [found[each] for each in dataset_ids]


def require_sealed(rows: Iterable[Dataset]) -> None:
    """Raise NotSealed if one of the data sets is not sealed, DatasetDeleted if it is deleted."""
    for row in rows:
        if gone := retention.deleted(row):
            raise gone
        if row.state != DatasetState.SEALED:
            raise NotSealed(f"Data set {row.id} is {row.state}; seal it first.", state=row.state)


def encode_index(records: Iterable[SampleRecord]) -> tuple[bytes, str]:
    """The index as bytes, one canonical JSON record a line, and the data set's digest over it."""
    lines = [json.dumps(each.to_dict(), sort_keys=True, separators=(",", ":")) for each in records]
    data = ("\n".join(lines) + "\n").encode()
    return data, f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_index(store: ObjectStore, index_key: str) -> Iterator[dict[str, Any]]:
    """The records of a sealed data set's index, in order, read as a stream.

    Raises:
        ObjectDamaged: before the last of them, if the index is not what was sealed.
        ObjectMissing, StoreUnavailable: see the store.
    """
    return (json.loads(line) for line in _lines(verified(store, index_key)))


def read_page(store: ObjectStore, index_key: str, start: int, count: int) -> list[dict[str, Any]]:
    """At most `count` records of an index from number `start` on.

    The index is read to its end, however few they are: none of a damaged one is shown.

    Raises:
        ObjectDamaged, ObjectMissing, StoreUnavailable: see the store.
    """
    lines = _lines(verified(store, index_key))
    page = list(islice(lines, start, start + count))
    deque(lines, maxlen=0)
    return [json.loads(line) for line in page]


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
