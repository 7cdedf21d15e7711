"""What a shard must be before a data set names it, whichever way it came. Decodes no image: sealing does."""

import re

from expunge.api.service import Service
from expunge.api.uploads import Upload
from expunge.formats.archives import ShardError
from expunge.formats.shards import check_structure
from expunge.registry import datasets, orphans
from expunge.registry.errors import InvalidShard
from expunge.registry.tables import Party

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


def check_accepts(service: Service, owner: Party, dataset_id: str) -> None:
    """Raise NotFound or Conflict unless it is an own data set that takes shards now."""
    with service.sessions() as session:
        datasets.check_accepts_shards(datasets.owned(session, owner, dataset_id))


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
