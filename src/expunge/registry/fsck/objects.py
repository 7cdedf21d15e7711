"""Are the objects there that rows name, and what is there that no row names? Reads the store, removes nothing."""

from collections.abc import Iterator
from itertools import islice

from sqlalchemy import select, tuple_

from expunge.registry import orphans, references
from expunge.registry.database import Sessions
from expunge.registry.fsck.finding import Check, Finding
from expunge.registry.objects import ObjectMissing, ObjectStore
from expunge.registry.retention import KEPT
from expunge.registry.tables import Checkpoint, PendingObject, Shard

SHOWN = 20
"""Keys that are told of many."""


def named(sessions: Sessions, store: ObjectStore, *, deep: bool) -> Iterator[Finding]:
    """Objects that rows name and that are missing, of another size, or (read in full, `deep`) damaged.

    Raises:
        StoreUnavailable: try again later.
    """
    for each in orphans.check(sessions, store, deep=deep):
        yield Finding(Check.OBJECTS, f"{each.named_by} names {each.key}, which is {each.problem}")
    for key, expected in _sized(sessions):
        try:
            size = store.size(key)
        except ObjectMissing:
            continue
        if size != expected:
            yield Finding(Check.OBJECTS, f"{key} has {size} bytes; its row says {expected}")


def _sized(sessions: Sessions) -> Iterator[tuple[str, int]]:
    """Keys and sizes of all objects whose size a row says, read page by page."""
    shards = select(Shard.dataset_id, Shard.name, Shard.object_key, Shard.bytes)
    kept = Checkpoint.state.in_(KEPT)
    weights = select(Checkpoint.id, Checkpoint.object_key, Checkpoint.bytes).where(kept)
    for query in (shards, weights):
        *identity, _, _ = query.selected_columns
        pages = query.order_by(*identity).limit(references.PAGE)
        page = pages
        while True:
            with sessions() as session:
                rows = session.execute(page).all()
            yield from ((key, size) for *_, key, size in rows)
            if len(rows) < references.PAGE:
                break
            page = pages.where(tuple_(*identity) > tuple_(*rows[-1][:-2]))


def unnamed(sessions: Sessions, store: ObjectStore) -> Iterator[Finding]:
    """Objects that no row names, and that nobody is about to name.

    Raises:
        StoreUnavailable: try again later.
    """
    keys = filter(orphans.OURS.search, store.keys())
    found = 0
    shown: list[str] = []
    while batch := list(islice(keys, orphans.BATCH)):
        with sessions() as session:
            # In this order: a note ends when a row names the object.
            noted = select(PendingObject.key).where(PendingObject.key.in_(batch))
            known = set(session.scalars(noted)) | references.named(session, batch)
        left = [key for key in batch if key not in known]
        found += len(left)
        shown += left[: SHOWN - len(shown)]
    if found:
        words = f"{found} objects are named by no row: {', '.join(shown)}"
        yield Finding(Check.ORPHANS, words + (", ..." if found > len(shown) else ""), broken=False)
