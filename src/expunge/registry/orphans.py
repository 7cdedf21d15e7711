"""Objects that nothing names are removed, and only those.

Who stores an object (`put`) first notes its key, so that no sweep takes it for abandoned. The
transaction that writes the key into a row calls `named`, which ends the note. A sweep condemns an
object that no row names and no note protects: it commits that, deletes the object, and commits that
it is gone. A condemned key is not used again for RETIRED: `named` refuses it, and `put` stores the
same bytes under another one. So no order of events makes a row name a missing object: not a sweep
beside an upload of the same bytes, not a deletion that a stalled store carries out minutes later.

Whoever decides about a key holds its row in `pending_objects`; nobody holds it while a store works.
A note counts for the grace period; one of an attempt for as long as the attempt holds its lease. An
object that never had a note (its shard was replaced, say) gets one when a sweep first sees it. Keys
under an attempt's own token, named together with a check of its lease, are safe without `named`.
"""

import hashlib
import re
import secrets
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import ColumnElement, case, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.formats.digests import sha256_file
from expunge.registry import log, references
from expunge.registry.database import Sessions
from expunge.registry.errors import DomainError
from expunge.registry.objects import ObjectMissing, ObjectStore, key_of
from expunge.registry.tables import Job, PendingObject
from expunge.registry.transitions import LeaseLost

if TYPE_CHECKING:
    from expunge.registry.jobs import Lease

BATCH = 5000
"""Keys in one transaction."""
KEYS_LOGGED = 20
SILENT_SECONDS = 3600
"""After so long without a byte a file of a broken put is removed, at the earliest."""
RETIRED = timedelta(days=7)
"""Longer than a process can stand between storing and naming, or a store delay a deletion."""

CONDEMNED = "condemned"
"""In place of a lease's token: a sweep deletes the object; no row may name it."""
GONE = "gone"
"""In place of a lease's token: the object was deleted; no row may name the key."""

ENDED = "ended"
"""In place of a lease's token, of an attempt that is over: protects nothing."""
OF_ATTEMPT = re.compile(r"snapshots/")
"""What the keys of attempts' own objects begin with."""

OURS = re.compile(r"/[0-9a-f]{64}$")
"""What a key ends in: a sweep leaves everything else in the store alone."""


class ObjectRemoved(DomainError):
    """Storing an object and recording it took so long that it was removed; the call can be repeated."""

    slug, title, status = "upload-expired", "The upload took too long", 503


@dataclass(frozen=True, slots=True)
class Swept:
    """Keys of the objects that a sweep removed, and how many it left."""

    removed: list[str]
    kept: int


@dataclass(frozen=True, slots=True)
class Destroyed:
    """Of the objects that were to be destroyed: gone for sure, kept since a row names them, or not gone yet."""

    gone: list[str]
    named: list[str]
    waiting: list[str]


@dataclass(frozen=True, slots=True)
class Broken:
    """An object that a row names (table and id) and that cannot be used."""

    key: str
    named_by: str
    problem: Literal["missing", "damaged"]


def put(
    sessions: Sessions,
    store: ObjectStore,
    path: Path,
    sha256: str,
    *,
    lease: "Lease | None" = None,
    under: str | None = None,
) -> str:
    """Store a file that a row is going to name, and return its key (see ObjectStore.put).

    Raises:
        LeaseLost: the job no longer runs under this lease; nothing is stored.
        StoreUnavailable: try again later.
    """
    return store.put(path, sha256, under=_noted(sessions, sha256, lease, under))


def put_bytes(
    sessions: Sessions,
    store: ObjectStore,
    data: bytes,
    work_dir: Path,
    *,
    lease: "Lease | None" = None,
    under: str | None = None,
) -> str:
    """As `put`, of a small object that is at hand as bytes."""
    with tempfile.NamedTemporaryFile(dir=work_dir) as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        return put(sessions, store, path, sha256_file(path), lease=lease, under=under)


def _noted(sessions: Sessions, sha256: str, lease: "Lease | None", under: str | None) -> str | None:
    """Note the key of a coming object and return what it lies under: not a key that a sweep has condemned."""
    with sessions.begin() as session:
        if lease is not None:
            _require_held(session, lease)
        token = lease.token if lease else None
        if not _note(session, key_of(sha256, under), token):
            under = f"{under or 'anew'}/{secrets.token_hex(8)}"
            _note(session, key_of(sha256, under), token)
    return under


def _require_held(session: Session, lease: "Lease") -> None:
    held = select(Job.id).where(
        Job.id == lease.job_id, Job.lease_token == lease.token, Job.state.in_(references.LIVE)
    )
    if session.scalar(held) is None:
        raise LeaseLost(f"{lease.job_id} no longer runs under this lease")


def _note(session: Session, key: str, token: str | None) -> bool:
    """Whether the key may be used; a note that several share counts for the grace period."""
    new = insert(PendingObject).values(key=key, lease_token=token)
    own = PendingObject.lease_token == new.excluded.lease_token
    noted = new.on_conflict_do_update(
        index_elements=[PendingObject.key],
        set_={
            "noted_at": func.now(),
            "lease_token": case((own, PendingObject.lease_token), else_=None),
        },
        where=~_removed(),
    )
    return session.scalar(noted.returning(PendingObject.key)) is not None


def _removed() -> ColumnElement[bool]:
    return func.coalesce(PendingObject.lease_token, "").in_((CONDEMNED, GONE))


def named(session: Session, keys: Collection[str]) -> None:
    """End the notes of objects that rows name once the session's transaction commits; one call a transaction.

    Raises:
        ObjectRemoved: a sweep took one of them; roll back, store it again, record again.
    """
    if not keys:
        return
    wanted = set(keys)
    if len(wanted) == 1:
        # Most often; several are first locked in order, which keeps two transactions from waiting
        # for each other.
        ended = delete(PendingObject).where(PendingObject.key.in_(wanted), ~_removed())
        if session.execute(ended.returning(PendingObject.key)).all():
            return
    # Rows that are not there are made: whoever decides about a key holds its row.
    new = insert(PendingObject).values([{"key": key} for key in sorted(wanted)])
    held = new.on_conflict_do_update(
        index_elements=[PendingObject.key], set_={"noted_at": PendingObject.noted_at}
    )
    removed = session.execute(held.returning(PendingObject.key, _removed())).all()
    if lost := sorted(key for key, is_removed in removed if is_removed):
        raise ObjectRemoved(
            f"What was uploaded was not recorded in time and is removed ({len(lost)} objects); "
            "send it again."
        )
    session.execute(delete(PendingObject).where(PendingObject.key.in_(keys)))


def sweep(sessions: Sessions, store: ObjectStore, *, grace_seconds: float) -> Swept:
    """Remove the objects that no row names and no note protects; any number of sweeps may run at once.

    Each removed object is logged once, with the transaction that marks it as gone: a row for every
    BATCH of them. Of several sweeps one reports it.

    Raises:
        StoreUnavailable: what is condemned stays so, and the next sweep goes on.
    """
    store.clean(max(grace_seconds, SILENT_SECONDS))
    kept = 0
    for keys in _batches(filter(OURS.search, store.keys())):
        kept += len(keys) - _condemn(sessions, keys, grace_seconds)
    removed = _remove_condemned(sessions, store)
    _forget_notes(sessions, grace_seconds)
    return Swept(removed, kept)


def destroy(sessions: Sessions, store: ObjectStore, keys: Collection[str]) -> Destroyed:
    """Remove these objects now, without a grace period, and look whether they are gone.

    Whoever is about to name the same bytes is told to send them again; what a running attempt is
    storing waits. May be repeated, and done by several at once.

    Raises:
        StoreUnavailable: some may be gone, what is condemned stays so; do it again.
    """
    there = [key for key in sorted(set(keys)) if not _is_missing(store, key)]
    for batch in _batches(there):
        _condemn(sessions, batch, grace_seconds=0)
    with sessions() as session:
        named = references.named(session, there)
        condemned = session.scalars(
            select(PendingObject.key).where(PendingObject.key.in_(there), _removed())
        ).all()
    deleted = []
    try:
        for key in sorted(set(condemned) - named):
            store.delete(key)
            if _is_missing(store, key):
                deleted.append(key)
    finally:
        _record_gone(sessions, deleted)
    gone = set(keys) - set(there) | set(deleted)
    return Destroyed(sorted(gone), sorted(named), sorted(set(there) - gone - named))


def _is_missing(store: ObjectStore, key: str) -> bool:
    return _problem(store, key, deep=False) == "missing"


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _condemn(sessions: Sessions, keys: Sequence[str], grace_seconds: float) -> int:
    """Condemn what is neither named nor protected; how many of the keys are condemned now."""
    with sessions() as session:
        unnamed = set(keys) - references.named(session, keys)
    if not unnamed:
        return 0
    among = PendingObject.key.in_(unnamed)
    with sessions.begin() as session:
        noted = select(PendingObject.key).where(among)
        held = set(session.scalars(noted.with_for_update(skip_locked=True)))
        # A row that is there but was not to be had belongs to somebody who is naming the object.
        new = sorted(unnamed - held - set(session.scalars(noted)))
        if new:
            notes = insert(PendingObject).values(
                # An attempt's object was noted with its lease: without a note, that has ended.
                [
                    {"key": key, "lease_token": ENDED if OF_ATTEMPT.match(key) else None}
                    for key in new
                ]
            )
            session.execute(notes.on_conflict_do_nothing())
        mine = PendingObject.key.in_(held.union(new))
        session.execute(
            update(PendingObject)
            .where(
                mine,
                ~_protects(grace_seconds),
                PendingObject.lease_token.is_distinct_from(CONDEMNED),
            )
            .values(lease_token=CONDEMNED, noted_at=func.now())
        )
        condemned = set(session.scalars(noted.where(PendingObject.lease_token == CONDEMNED)))
        # Named after the first look, by a transaction that has ended since.
        saved = references.named(session, condemned)
        session.execute(delete(PendingObject).where(PendingObject.key.in_(saved)))
    return len(condemned - saved)


def _protects(grace_seconds: float) -> ColumnElement[bool]:
    running = (
        select(Job.id)
        .where(Job.lease_token == PendingObject.lease_token, Job.state.in_(references.LIVE))
        .exists()
    )
    young = PendingObject.noted_at > func.now() - timedelta(seconds=grace_seconds)
    return or_(running, PendingObject.lease_token.is_(None) & young)


def _remove_condemned(sessions: Sessions, store: ObjectStore) -> list[str]:
    """Delete condemned objects, also those that a sweep before left; the keys whose end is logged here."""
    removed: list[str] = []
    condemned = select(PendingObject.key).where(PendingObject.lease_token == CONDEMNED)
    last = ""
    while True:
        page = condemned.where(PendingObject.key > last).order_by(PendingObject.key).limit(BATCH)
        with sessions() as session:
            keys = session.scalars(page).all()
        if not keys:
            return removed
        last = keys[-1]
        deleted: list[str] = []
        try:
            for key in keys:
                # Where versions were ever kept, a DELETE leaves a marker of what is long gone, too.
                if not _is_missing(store, key):
                    store.delete(key)
                deleted.append(key)
        finally:
            removed += _record_gone(sessions, deleted)


def _record_gone(sessions: Sessions, keys: Sequence[str]) -> list[str]:
    with sessions.begin() as session:
        gone = sorted(
            session.scalars(
                update(PendingObject)
                .where(PendingObject.key.in_(keys), PendingObject.lease_token == CONDEMNED)
                .values(lease_token=GONE, noted_at=func.now())
                .returning(PendingObject.key)
            )
        )
        if gone:
            log.append(
                session, log.SERVICE, "objects", "swept", count=len(gone), keys=gone[:KEYS_LOGGED]
            )
    return gone


def _forget_notes(sessions: Sessions, grace_seconds: float) -> None:
    """Notes that no longer count, of objects that are named or gone, and retired keys after their time.

    A note that ended since its object was looked at goes too: the next sweep notes the object anew.
    """
    ended = ~_protects(grace_seconds) & ~_removed()
    retired = (PendingObject.lease_token == GONE) & (PendingObject.noted_at < func.now() - RETIRED)
    some = select(PendingObject.key).where(or_(ended, retired)).limit(BATCH)
    while True:
        with sessions.begin() as session:
            keys = session.scalars(some.with_for_update(skip_locked=True)).all()
            session.execute(delete(PendingObject).where(PendingObject.key.in_(keys)))
        if len(keys) < BATCH:
            return


def check(sessions: Sessions, store: ObjectStore, *, deep: bool = False) -> Iterator[Broken]:
    """The named objects that are missing or, when each is read (`deep`), damaged; one after the other.

    Raises:
        StoreUnavailable: try again later.
    """
    for key, named_by in references.every(sessions):
        problem = _problem(store, key, deep=deep)
        if problem is not None:
            with sessions() as session:
                # Its row may have changed, and a sweep may have run, since the row was read.
                still = references.named(session, [key])
            if still:
                yield Broken(key, named_by, problem)


def _problem(store: ObjectStore, key: str, *, deep: bool) -> Literal["missing", "damaged"] | None:
    hashed = hashlib.sha256()
    try:
        # What seems to be missing is asked for in full: an answer without a body may come from
        # a gateway whose store is away.
        if not deep and _has_size(store, key):
            return None
        for chunk in store.stream(key):
            hashed.update(chunk)
    except ObjectMissing:
        return "missing"
    return None if key.endswith(hashed.hexdigest()) else "damaged"


def _has_size(store: ObjectStore, key: str) -> bool:
    try:
        store.size(key)
    except ObjectMissing:
        return False
    return True
