"""Which checkpoint came from which. Reads only; what follows from it is decided elsewhere."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry.lifecycles import RequestState
from expunge.registry.tables import (
    Checkpoint,
    CheckpointDataset,
    Model,
    Request,
    RequestDataset,
)


def base_for_unlearning(session: Session, model: Model) -> Checkpoint:
    """What the next removal starts from: the head, or the newest result upon it that waits for promotion.

    Starting from the head alone, a second removal would do the work of the first one, not yet
    promoted, again. A result that was withheld because it failed the policy is not built upon.
    """
    head = session.get_one(Checkpoint, model.head_checkpoint_id)
    newest = session.scalar(
        select(Checkpoint)
        .where(
            Checkpoint.model_id == model.id,
            Checkpoint.parent_id.is_not(None),
            Checkpoint.problem.is_(None),
        )
        .order_by(Checkpoint.id.desc())
        .limit(1)
    )
    return newest if newest is not None and descends(session, newest, head.id) else head


def descends(session: Session, checkpoint: Checkpoint, ancestor_id: str | None) -> bool:
    """Whether the checkpoint was made from the ancestor, through any number of removals."""
    current: Checkpoint | None = checkpoint
    while current is not None and current.parent_id is not None:
        if current.parent_id == ancestor_id:
            return True
        current = session.get(Checkpoint, current.parent_id)
    return False


def owed(session: Session, checkpoint: Checkpoint) -> list[str]:
    """Data sets that the checkpoint holds although a completed request was about them.

    A result that was withheld, or an earlier head, may still hold them: such a checkpoint must not
    come into force, and a removal that starts from one forgets them as well.
    """
    asked = (
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(Request.model_id == checkpoint.model_id, Request.state == RequestState.COMPLETED)
    )
    return sorted(
        session.scalars(
            select(CheckpointDataset.dataset_id).where(
                CheckpointDataset.checkpoint_id == checkpoint.id,
                ~CheckpointDataset.forgotten,
                CheckpointDataset.dataset_id.in_(asked),
            )
        )
    )
