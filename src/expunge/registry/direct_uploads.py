"""Shards that owners send to the object store themselves: announced, sent under a key of their own, checked, recorded.

Never makes a shard of the object that was sent, which its sender may still replace: what was read
and checked is stored anew, under the key of its content, and the sent object is removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session

from expunge.registry import datasets, idempotency, orphans
from expunge.registry.errors import Conflict, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import DatasetState
from expunge.registry.objects import key_of
from expunge.registry.tables import Dataset, DirectUpload, Party, PendingObject

MAX_OPEN = 100
"""Of one data set, announced and neither completed nor expired."""
MAX_OPEN_OF_OWNER = 500
"""In all data sets of one owner."""
KEPT = timedelta(days=1)
"""After its end an upload is still known, so that a repeated call gets its answer."""
_UNSWEPT = exists().where(
    PendingObject.key == func.concat("uploads/", DirectUpload.id, "/", DirectUpload.sha256),
    func.coalesce(PendingObject.lease_token, "") != orphans.GONE,
)
"""What was sent may still be in the store; the key is that of `key`."""
OCCUPIES = and_(DirectUpload.samples.is_(None), or_(DirectUpload.expires_at > func.now(), _UNSWEPT))
"""Not a shard yet, and in the store, or still to come: also if its data set has been deleted meanwhile."""


class DirectUploadUnavailable(Conflict):
    """The store takes nothing from owners."""

    slug, title = "direct-upload-unavailable", "No direct uploads here"


class DirectUploadExpired(Conflict):
    """The time to send and complete the upload is over."""

    slug, title = "direct-upload-expired", "The upload expired"


class NothingReceived(Conflict):
    """The upload is to be completed, but the store has nothing of it."""

    slug, title = "nothing-received", "Nothing was received"


@dataclass(frozen=True, slots=True)
class Announced:
    """What an owner is going to send: name of the shard, size in bytes, SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def key(upload: DirectUpload) -> str:
    """Where the object is sent to: of this upload alone, whatever else has the same content."""
    return key_of(upload.sha256, f"uploads/{upload.id}")


def announce(
    session: Session,
    owner: Party,
    dataset_id: str,
    announced: Announced,
    *,
    seconds: float,
    idempotency_key: str | None = None,
) -> DirectUpload:
    """A new upload to an own data set, open for so long; with the key and content of an earlier call, that one.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: not an own data set.
        Conflict: it takes no shards, or too many uploads of it are open.
        DirectUploadExpired: the earlier call's upload has expired.
    """
    upload_id = new_id(Prefix.UPLOAD)
    content = [dataset_id, announced.name, announced.bytes, announced.sha256]
    call = idempotency.Call(owner.id, idempotency_key, "announce-upload", content)
    if earlier := idempotency.remember(session, call, upload_id):
        known = one(session, owner, dataset_id, earlier)
        require_open(session, known)
        return known
    dataset = datasets.owned(session, owner, dataset_id, lock=True)
    datasets.check_accepts_shards(dataset)
    _require_few_open(session, dataset)
    now = session.scalars(select(func.now())).one()
    upload = DirectUpload(
        id=upload_id,
        dataset_id=dataset_id,
        name=announced.name,
        bytes=announced.bytes,
        sha256=announced.sha256,
        expires_at=now + timedelta(seconds=seconds),
    )
    session.add(upload)
    # A note from the future: no sweep takes what is sent before the upload has expired.
    session.add(PendingObject(key=key(upload), noted_at=upload.expires_at))
    session.flush()
    return upload


def _require_few_open(session: Session, dataset: Dataset) -> None:
    of_owner = (
        select(func.count(), func.count().filter(DirectUpload.dataset_id == dataset.id))
        .join(Dataset, Dataset.id == DirectUpload.dataset_id)
        .where(
            Dataset.owner_id == dataset.owner_id,
            DirectUpload.samples.is_(None),
            DirectUpload.expires_at > func.now(),
        )
    )
    everywhere, here = session.execute(of_owner).one()
    for number, limit, place in (
        (here, MAX_OPEN, f"data set {dataset.id}"),
        (everywhere, MAX_OPEN_OF_OWNER, "your data sets"),
    ):
        if number >= limit:
            raise Conflict(
                f"{limit} uploads to {place} are open; complete some, or wait until they expire.",
                allowed=limit,
            )


def one(session: Session, owner: Party, dataset_id: str, upload_id: str) -> DirectUpload:
    """An upload to an own data set.

    Raises:
        NotFound: there is none, or it belongs to another party.
    """
    dataset = datasets.owned(session, owner, dataset_id)
    ended = dataset.state in (DatasetState.DELETING, DatasetState.DELETED)
    upload = session.get(DirectUpload, upload_id, populate_existing=True)
    if upload is None or upload.dataset_id != dataset_id or ended:
        raise NotFound.of("upload", upload_id)
    return upload


def seconds_left(session: Session, upload: DirectUpload) -> float:
    """Until it expires."""
    now = session.scalars(select(func.now())).one()
    return (upload.expires_at - now).total_seconds()


def require_open(session: Session, upload: DirectUpload) -> None:
    """Raise DirectUploadExpired unless it may still be sent and completed; a completed one may."""
    if upload.samples is None and seconds_left(session, upload) <= 0:
        raise DirectUploadExpired(
            f"Upload {upload.id} expired at {upload.expires_at:%Y-%m-%d %H:%M} UTC; announce it "
            "again and send it again.",
            expires_at=upload.expires_at,
        )


def record(
    session: Session, owner: Party, dataset_id: str, upload_id: str, shard: datasets.StoredShard
) -> None:
    """Record the checked shard; of several calls at once, one does.

    Raises:
        NotFound: the upload is gone.
        Conflict: the data set takes no shards any more.
        ObjectRemoved: see `orphans.named`.
    """
    datasets.owned(session, owner, dataset_id, lock=True)
    upload = one(session, owner, dataset_id, upload_id)
    if upload.samples is None:
        datasets.add_shard(session, owner, dataset_id, shard)
        upload.samples = shard.samples
        _end_notes(session, [key(upload)])


def give_up(session: Session, dataset: Dataset) -> list[str]:
    """End all uploads to a data set that is being deleted; the keys of what may have been sent.

    Those that were not completed are remembered until they have expired: until then their owner can
    send to them.
    """
    uploads = session.scalars(
        select(DirectUpload).where(DirectUpload.dataset_id == dataset.id)
    ).all()
    keys = [key(each) for each in uploads]
    ended = DirectUpload.dataset_id == dataset.id
    session.execute(delete(DirectUpload).where(ended, DirectUpload.samples.is_not(None)))
    session.execute(update(DirectUpload).where(ended).values(name=""))
    _end_notes(session, keys)
    return keys


def _end_notes(session: Session, keys: Sequence[str]) -> None:
    noted = PendingObject.key.in_(keys) & PendingObject.lease_token.is_(None)
    session.execute(delete(PendingObject).where(noted))


def forget_expired(session: Session) -> None:
    """Forget uploads that ended long ago, once a sweep has removed what was sent and not completed."""
    ended = DirectUpload.expires_at < func.now() - KEPT
    session.execute(delete(DirectUpload).where(ended, ~_UNSWEPT))
