"""The end of checkpoints and data sets: their objects are deleted, looked for, and only then said to be gone.

Who begins a destruction unnames the objects and notes them (`doom`) in one transaction. Whatever
happens then, a crash or a store that is away, the next `finish` goes on, and one of them logs the end.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from expunge.registry import lineage, log, orphans
from expunge.registry.database import Sessions
from expunge.registry.ids import Prefix
from expunge.registry.lifecycles import CheckpointState, DatasetState
from expunge.registry.migration import newest, revision_of
from expunge.registry.objects import ObjectStore, StoreUnavailable
from expunge.registry.tables import Checkpoint, Dataset, DoomedObject
from expunge.registry.transitions import StateChanged, move

KEPT_OBJECT = "the same bytes are named by something else as well"
"""Why an object of a destroyed checkpoint or data set is still there."""
CHECKPOINT_DESTROYED = "checkpoint-destroyed"
"""The event of a request: a checkpoint that held its data is gone."""


FEW_OBJECTS = 100
"""So many may be deleted while somebody waits for the answer."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """Ids of the checkpoints and data sets whose end was recorded, and of those that wait for the store.

    And what went wrong with the others, in words.
    """

    ended: list[str]
    waiting: list[str]
    failed: dict[str, str]


def doom(session: Session, subject_id: str, keys: Iterable[str]) -> None:
    """Note the objects of a checkpoint or data set that the same transaction unnames."""
    rows = [{"subject_id": subject_id, "key": key} for key in sorted(set(keys))]
    if rows:
        session.execute(insert(DoomedObject).values(rows).on_conflict_do_nothing())


def finish_all(sessions: Sessions, store: ObjectStore) -> Ended:
    """Finish every destruction that has begun; any number may do so at once, and one logs each end.

    What goes wrong with one holds up none of the others, and the next time tries it again.

    Raises:
        StoreUnavailable, DBAPIError: store or database are away; the next time goes on.
    """
    with sessions() as session:
        begun = [
            *session.scalars(
                select(Checkpoint.id).where(Checkpoint.state == CheckpointState.DESTROYING)
            ),
            *session.scalars(select(Dataset.id).where(Dataset.state == DatasetState.DELETING)),
        ]
    found = Ended([], [], {})
    for each in sorted(begun):
        try:
            over = finish(sessions, store, each)
        except Exception as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            # A store that keeps one object, by a rule of its own perhaps, is there for the others.
            store.check()
            logger.warning("destruction goes on later", subject_id=each, error=str(error))
            found.failed[each] = str(error)
        else:
            (found.ended if over else found.waiting).append(each)
    return found


def finish_if_quick(sessions: Sessions, store: ObjectStore, subject_id: str) -> None:
    """Finish a destruction now, unless a sweep has to: there are many objects, or the store is away.

    Or the schema is a newer version's, where other rows may name the objects: its dispatchers know.
    """
    with sessions() as session:
        if revision_of(session.connection()) != newest():
            return
        keys = select(func.count()).where(DoomedObject.subject_id == subject_id)
        many = (session.scalar(keys) or 0) > FEW_OBJECTS
    if not many:
        with suppress(StoreUnavailable):
            finish(sessions, store, subject_id)


def finish(sessions: Sessions, store: ObjectStore, subject_id: str) -> bool:
    """Delete what is left of a destruction that has begun, and record its end; whether it is over.

    An object that something else names as well stays, and the log says so. One that a running
    attempt is storing this moment is waited for.

    Raises:
        StoreUnavailable: the next time goes on.
    """
    with sessions() as session:
        keys = session.scalars(
            select(DoomedObject.key).where(DoomedObject.subject_id == subject_id)
        ).all()
    outcome = orphans.destroy(sessions, store, keys)
    if outcome.waiting:
        return False
    with sessions.begin() as session:
        session.execute(delete(DoomedObject).where(DoomedObject.subject_id == subject_id))
        try:
            _record(session, subject_id, outcome)
        except StateChanged:
            return True
    return True


def _record(session: Session, subject_id: str, outcome: orphans.Destroyed) -> None:
    told: dict[str, Any] = {"objects": len(outcome.gone)}
    if outcome.named:
        told |= {"kept": len(outcome.named), "why_kept": KEPT_OBJECT}
    if subject_id.startswith(f"{Prefix.DATASET}_"):
        dataset = session.get_one(Dataset, subject_id)
        told["digest"] = dataset.digest
        move(session, dataset, DatasetState.DELETED, detail=told, deleted_at=func.now())
        return
    checkpoint = session.get_one(Checkpoint, subject_id)
    told |= {"digest": checkpoint.digest, "release_digest": checkpoint.release_digest}
    reason = "holds data that was forgotten on request"
    move(
        session,
        checkpoint,
        CheckpointState.DESTROYED,
        reason=reason,
        detail=told,
        destroyed_at=func.now(),
    )
    for request_id, is_own in lineage.asked_of(session, checkpoint).items():
        # Of other checkpoints the request's owner is not to know the id.
        named = {"checkpoint_id": checkpoint.id, "digest": checkpoint.digest} if is_own else {}
        log.append(session, log.SERVICE, request_id, CHECKPOINT_DESTROYED, reason=reason, **named)
