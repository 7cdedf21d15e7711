"""Which checkpoint came from which. Reads only; what follows from it is decided elsewhere."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry.tables import Checkpoint, Model


def base_for_unlearning(session: Session, model: Model) -> Checkpoint:
    """What the next removal starts from: the head, or the newest result upon it that waits for promotion.

    Starting from the head alone, a second removal would keep what the first one, not yet
    promoted, has forgotten, and no checkpoint would ever have forgotten both.
    """
    head = session.get_one(Checkpoint, model.head_checkpoint_id)
    newest = session.scalar(
        select(Checkpoint)
        .where(Checkpoint.model_id == model.id, Checkpoint.parent_id.is_not(None))
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
