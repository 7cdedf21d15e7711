"""Which checkpoints hold what was forgotten on request, how long audits need them, and whose time is over.

Never touches a store: what is due gets `destroying` here, and ends in `destruction`.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import structlog
from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, lazyload

from expunge.registry import destruction, policies
from expunge.registry.database import Sessions
from expunge.registry.errors import CheckpointDestroyed, DatasetDeleted
from expunge.registry.lifecycles import CheckpointState, DatasetState, RequestState
from expunge.registry.references import UNFINISHED
from expunge.registry.tables import (
    Audit,
    Checkpoint,
    CheckpointDataset,
    Dataset,
    Encoding,
    Job,
    Model,
    Request,
    RequestDataset,
)
from expunge.registry.transitions import move

Row = TypeVar("Row", Checkpoint, Dataset)

KEPT = (CheckpointState.CHECKING, CheckpointState.READY, CheckpointState.INVALID)
"""States in which a checkpoint's objects are there."""

logger = structlog.get_logger(__name__)


def start(sessions: Sessions) -> list[str]:
    """Begin the destruction of every checkpoint whose time is over; their ids. Any number may do so at once.

    What goes wrong with one model holds up none of the others, and the next time tries it again.

    Raises:
        DBAPIError: the database is away.
    """
    with sessions() as session:
        model_ids = session.scalars(select(Checkpoint.model_id).where(_holds()).distinct()).all()
    started: list[str] = []
    for model_id in sorted(model_ids):
        try:
            started += _start_of(sessions, model_id)
        except Exception as error:
            if isinstance(error, DBAPIError) and error.connection_invalidated:
                raise
            logger.warning("destruction begins later", model_id=model_id, error=str(error))
    return started


def _start_of(sessions: Sessions, model_id: str) -> list[str]:
    with sessions.begin() as session:
        # The row that promotion locks too: a checkpoint is put in force or destroyed, not both.
        model = session.get_one(Model, model_id, with_for_update={"key_share": True})
        days = policies.of(model.policy).keep_days
        reason = f"holds data that was forgotten on request; kept for {days} days after"
        ending = due(session, model)
        for checkpoint in ending:
            _begin(session, checkpoint, reason)
        return [checkpoint.id for checkpoint in ending]


def due(session: Session, model: Model) -> list[Checkpoint]:
    """The model's checkpoints whose time is over and that nobody needs, row-locked."""
    keep = timedelta(days=policies.of(model.policy).keep_days)
    over = (
        select(Checkpoint)
        .where(Checkpoint.model_id == model.id, _holds(func.now() - keep), ~needed())
        .order_by(Checkpoint.id)
        .with_for_update(of=Checkpoint, skip_locked=True)
    )
    locked = {row.id: row for row in session.scalars(over)}
    # Whoever came to need one held its row (see `hold`), perhaps until after the look above.
    wanted = set(session.scalars(select(Checkpoint.id).where(Checkpoint.id.in_(locked), needed())))
    return [row for row in locked.values() if row.id not in wanted]


def _holds(before: ColumnElement[Any] | None = None) -> ColumnElement[bool]:
    """Kept, and holds data that a head has forgotten on request, since before a time if one is given."""
    forgotten = holding(Request.effective_at.is_not(None))
    if before is not None:
        forgotten = forgotten.where(Request.effective_at <= before)
    return Checkpoint.state.in_(KEPT) & forgotten.exists()


def holding(*which: ColumnElement[bool]) -> Select[str]:
    """Ids of completed requests to the checkpoint's model about data that the checkpoint (of the outer query) holds."""
    return (
        select(Request.id)
        .join(RequestDataset, RequestDataset.request_id == Request.id)
        .join(CheckpointDataset, CheckpointDataset.dataset_id == RequestDataset.dataset_id)
        .where(
            CheckpointDataset.checkpoint_id == Checkpoint.id,
            ~CheckpointDataset.forgotten,
            Request.model_id == Checkpoint.model_id,
            Request.state == RequestState.COMPLETED,
            *which,
        )
        .correlate(Checkpoint)
    )


def needed() -> ColumnElement[bool]:
    """In force, or about to be used by a job, a comparison, an audit or an encoding that has not ended."""
    in_force = select(Model.id).where(Model.head_checkpoint_id == Checkpoint.id)
    of_job = select(Job.id).where(
        Job.state.in_(UNFINISHED),
        or_(
            Job.base_checkpoint_id == Checkpoint.id,
            Job.checkpoint_id == Checkpoint.id,
            Job.result_checkpoint_id == Checkpoint.id,
        ),
    )
    asked = (
        select(table.id)
        .join(Job, Job.id == table.job_id)
        .where(
            Job.state.in_(UNFINISHED),
            or_(
                table.before_checkpoint_id == Checkpoint.id,
                table.after_checkpoint_id == Checkpoint.id,
            ),
        )
        for table in (Audit, Encoding)
    )
    # What a review compares a later head with, beside the audit's before and after.
    since = (
        select(Audit.id)
        .join(Job, Job.id == Audit.job_id)
        .where(
            Job.state.in_(UNFINISHED),
            Audit.settings["since_checkpoint_id"].astext == Checkpoint.id,
        )
    )
    uses = (in_force, of_job, *asked, since)
    return or_(*(each.correlate(Checkpoint).exists() for each in uses))


def end(session: Session, checkpoint_id: str, reason: str) -> bool:
    """Begin a checkpoint's destruction before its time, unless somebody needs it; whether it goes, or has gone."""
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        return True
    # As `start`: the model's row first, then the checkpoint's, and then a last look.
    session.get_one(Model, checkpoint.model_id, with_for_update={"key_share": True})
    session.refresh(checkpoint, with_for_update=True)
    if checkpoint.state not in KEPT:
        return True
    if session.scalar(select(Checkpoint.id).where(Checkpoint.id == checkpoint_id, needed())):
        return False
    _begin(session, checkpoint, reason)
    return True


def _begin(session: Session, checkpoint: Checkpoint, reason: str) -> None:
    move(session, checkpoint, CheckpointState.DESTROYING, reason=reason)
    destruction.doom(session, checkpoint.id, [checkpoint.object_key, checkpoint.release_key])


def hold(
    session: Session, *, checkpoint_ids: Collection[str] = (), dataset_ids: Collection[str] = ()
) -> Sequence[Dataset]:
    """Keep these from being destroyed until the session's transaction ends, and with it records who needs them.

    Returns the data sets, without their shards.

    Raises:
        CheckpointDestroyed, DatasetDeleted: it is too late.
    """
    for checkpoint in locked(session, Checkpoint, checkpoint_ids):
        if refusal := destroyed(checkpoint):
            raise refusal
    datasets = locked(session, Dataset, dataset_ids)
    for dataset in datasets:
        if gone := deleted(dataset):
            raise gone
    return datasets


def locked(session: Session, table: type[Row], ids: Collection[str]) -> Sequence[Row]:
    """The rows as they are now, share-locked in order: until the transaction ends, none begins to be destroyed."""
    rows = select(table).where(table.id.in_(ids)).order_by(table.id)
    shared = rows.with_for_update(read=True, of=table).options(lazyload("*"))
    return session.scalars(shared.execution_options(populate_existing=True)).all()


def destroyed(checkpoint: Checkpoint) -> CheckpointDestroyed | None:
    """The refusal to use a checkpoint whose weights are gone, or about to be."""
    if checkpoint.state in KEPT:
        return None
    when = _when("destroyed", checkpoint.destroyed_at)
    return CheckpointDestroyed(
        f"Checkpoint {checkpoint.id} {when}: it held data that was forgotten on request, and the "
        "time for which its model's policy kept it was over.",
        destroyed_at=checkpoint.destroyed_at,
    )


def deleted(dataset: Dataset) -> DatasetDeleted | None:
    """The refusal to use a data set whose samples are gone, or about to be."""
    if dataset.state not in (DatasetState.DELETING, DatasetState.DELETED):
        return None
    when = _when("deleted", dataset.deleted_at)
    return DatasetDeleted(
        f"Data set {dataset.id} {when} by its owner: its samples are gone for good.",
        deleted_at=dataset.deleted_at,
    )


def deleted_among(session: Session, dataset_ids: Collection[str]) -> list[str]:
    """Those of the data sets that their owners deleted, or are deleting."""
    gone = Dataset.state.in_((DatasetState.DELETING, DatasetState.DELETED))
    return sorted(session.scalars(select(Dataset.id).where(Dataset.id.in_(dataset_ids), gone)))


def _when(event: str, at: Any) -> str:
    return f"is being {event}" if at is None else f"was {event} on {at:%Y-%m-%d}"
