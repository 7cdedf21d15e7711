"""Which checkpoint came from which. Reads only; what follows from it is decided elsewhere."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry import lifecycles
from expunge.registry.lifecycles import CheckpointState, RequestState
from expunge.registry.tables import (
    Checkpoint,
    CheckpointDataset,
    Job,
    Model,
    Request,
    RequestDataset,
)

UNFINISHED = [state for state in RequestState if not lifecycles.is_final(lifecycles.REQUEST, state)]


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
            Checkpoint.state == CheckpointState.READY,
            Checkpoint.problem.is_(None),
        )
        .order_by(Checkpoint.id.desc())
        .limit(1)
    )
    steps = [] if newest is None else since(session, newest, head.id)
    return steps[-1] if steps and all(step.problem is None for step in steps) else head


def since(session: Session, checkpoint: Checkpoint, ancestor_id: str | None) -> list[Checkpoint]:
    """The results from an ancestor's first successor to the checkpoint, oldest first; none if it is no ancestor."""
    steps: list[Checkpoint] = []
    current: Checkpoint | None = checkpoint
    while current is not None and current.parent_id is not None:
        steps.append(current)
        if current.parent_id == ancestor_id:
            return steps[::-1]
        current = session.get(Checkpoint, current.parent_id)
    return []


def to_forget(session: Session, job: Job, base: Checkpoint) -> set[str]:
    """Data sets that a removal which starts from `base` makes it forget; none if it holds none of them."""
    asked = {each for request in job.requests for each in request.dataset_ids}
    return (asked | set(owed(session, base))) & set(base.retained)


def pending(session: Session, job: Job) -> set[str]:
    """Data sets of other requests to the model that were made before the job started and wait since.

    They are about to be forgotten: a job does not train on them any more.
    """
    asked = (
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(
            Request.model_id == job.model_id,
            Request.job_id.is_distinct_from(job.id),
            Request.state.in_(UNFINISHED),
            Request.created_at < job.started_at,
        )
    )
    return set(session.scalars(asked))


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


def asked_of(session: Session, checkpoint: Checkpoint) -> dict[str, bool]:
    """Completed requests to its model about data that it holds: id, and whether it is their before or after."""
    held = select(CheckpointDataset.dataset_id).where(
        CheckpointDataset.checkpoint_id == checkpoint.id, ~CheckpointDataset.forgotten
    )
    asked = (
        select(Request.id, Job.base_checkpoint_id, Job.result_checkpoint_id)
        .join(RequestDataset, RequestDataset.request_id == Request.id)
        .join(Job, Job.id == Request.job_id)
        .where(
            Request.model_id == checkpoint.model_id,
            Request.state == RequestState.COMPLETED,
            RequestDataset.dataset_id.in_(held),
        )
        .order_by(Request.id)
    )
    return {row[0]: checkpoint.id in row[1:] for row in session.execute(asked)}
