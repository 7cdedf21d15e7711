"""What a shard must be before a data set names it, whichever way it came. Decodes no image: sealing does."""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from sqlalchemy.orm import Session

from expunge.api.service import Service
from expunge.api.uploads import Upload
from expunge.formats.archives import ShardError
from expunge.formats.shards import check_structure
from expunge.registry import datasets, orphans, quota
from expunge.registry.errors import InvalidShard
from expunge.registry.objects import StoreUnavailable
from expunge.registry.quota import Room
from expunge.registry.tables import Party, Shard

SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.tar")


def check_name(name: str) -> None:
    """Raise InvalidShard unless a shard may be called so."""
    if not SHARD_NAME.fullmatch(name):
        raise InvalidShard(
            f"{name[:100]!r} is no shard name: letters, digits, '_', '-' and '.', at most 104 "
            "characters, ending in .tar, not starting with a dot.",
            code="unsafe-name",
            allowed=SHARD_NAME.pattern,
        )


def room_for(service: Service, owner: Party, dataset_id: str, name: str) -> Room:
    """How much a shard of this name may hold by the owner's quota.

    Raises:
        NotFound, Conflict: it is no own data set that takes shards now.
    """
    with service.sessions() as session:
        dataset = datasets.owned(session, owner, dataset_id)
        datasets.check_accepts_shards(dataset)
        replaced = sum(each.bytes for each in dataset.shards if each.name == name)
        limit = service.settings.stored_bytes_per_party
        return quota.room(session, owner.id, limit, replaced=replaced)


def recorded(
    service: Service,
    owner: Party,
    dataset_id: str,
    shard: datasets.StoredShard,
    record: Callable[[Session], object],
) -> None:
    """Record a stored shard, within the owner's quota; of one that it replaces nothing is left.

    Raises:
        QuotaExceeded: others came meanwhile; the shard is not left either.
        And what `record` raises.
    """
    with service.sessions() as session:
        row = session.get(Shard, (dataset_id, shard.name))
        before = [] if row is None else [row.object_key]
    limit = service.settings.stored_bytes_per_party
    try:
        with (
            service.sessions.begin() as session,
            quota.kept(session, owner.id, limit),
        ):
            record(session)
    except quota.QuotaExceeded:
        _let_go(service, [shard.object_key])
        raise
    if before != [shard.object_key]:
        _let_go(service, before)


def _let_go(service: Service, keys: Sequence[str]) -> None:
    with suppress(StoreUnavailable):  # A sweep removes them then.
        quota.discard(service.sessions, service.store, keys)


def stored(service: Service, name: str, upload: Upload) -> datasets.StoredShard:
    """Check the archive and store it.

    Raises:
        InvalidShard: it breaks a rule of the format; nothing is stored.
        StoreUnavailable: try again later.
    """
    try:
        samples = check_structure(upload.path)
    except ShardError as error:
        raise InvalidShard(f"Shard {name}: {error}.", code=error.code) from error
    return datasets.StoredShard(
        name=name,
        digest=f"sha256:{upload.sha256}",
        bytes=upload.size,
        samples=samples,
        object_key=orphans.put(service.sessions, service.store, upload.path, upload.sha256),
    )
