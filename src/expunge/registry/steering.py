"""What a model's owner does to jobs that wait or run: end them, change their turn. Never runs one."""

from sqlalchemy.orm import Session

from expunge.registry import jobs, visibility, waiting
from expunge.registry.lifecycles import JobState
from expunge.registry.tables import Comparison, Job, Model, Party

CANCELLED = "the model's owner cancelled the job"
"""What everybody reads whose request was part of it."""


def cancel_job(session: Session, owner: Party, job_id: str, reason: str | None) -> Job:
    """End a pre-training or unlearning job of an own model and all its requests; doing so again changes nothing.

    A running attempt loses its lease in the same moment: nothing of it is recorded any more.

    Raises:
        NotFound: not a training job of an own model.
        StateChanged: it has succeeded or failed.
    """
    job = visibility.one(session, visibility.jobs(owner), job_id)
    _cancel(session, owner, job, reason)
    return job


def cancel_comparison(
    session: Session, owner: Party, comparison_id: str, reason: str | None
) -> Comparison:
    """End an own comparison that waits or runs; doing so again changes nothing.

    Raises:
        NotFound: not an own comparison.
        StateChanged: it has succeeded or failed.
    """
    comparison = visibility.one(session, visibility.comparisons(owner), comparison_id)
    _cancel(session, owner, comparison.job, reason)
    return comparison


def _cancel(session: Session, owner: Party, job: Job, reason: str | None) -> None:
    # Model, job, requests: the order in which everything locks them.
    session.get_one(Model, job.model_id, with_for_update=True)
    session.refresh(job, with_for_update=True)
    if job.state == JobState.CANCELLED:
        return
    told = f"{CANCELLED}: {reason}" if reason else CANCELLED
    jobs.cancel(session, job, actor=owner.id, reason=told)


def prioritise(session: Session, owner: Party, job_id: str, priority: int) -> Job:
    """Let a waiting training job of an own model go before (or after) others of the same owner and kind.

    Raises:
        NotFound: not a training job of an own model.
        Conflict: it does not wait any more.
    """
    job = visibility.one(session, visibility.jobs(owner), job_id)
    waiting.prioritise(session, owner.id, job, priority)
    return job
