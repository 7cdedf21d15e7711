"""The queue of jobs: enqueue, announce, claim under a lease, report, finish, take back. Never does the work."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import and_, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from expunge.registry import lineage, log
from expunge.registry.database import Sessions
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import CheckpointState, DatasetState, JobState, RequestState
from expunge.registry.tables import (
    MODEL_OWNER_KINDS,
    TRAINING_KINDS,
    Checkpoint,
    Dataset,
    Job,
    JobKind,
    Model,
)
from expunge.registry.transitions import LeaseLost, move, move_leased

WAKE_CHANNEL = "expunge_jobs"
"""PostgreSQL notification channel: something may have become due."""

LONGEST_PAUSE = timedelta(minutes=5)
"""Between two announcements of a job that waits."""

LIVE_STATES = (JobState.RUNNING, JobState.EVALUATING)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one attempt to work on a job; every write of the attempt carries the token."""

    job_id: str
    kind: JobKind
    token: str
    attempt: int


def enqueue(
    session: Session,
    kind: JobKind,
    *,
    actor: str,
    params: dict[str, Any],
    delay_seconds: float = 0,
    **references: str | None,
) -> Job:
    """Add a queued job; its wake-up leaves when the transaction commits (and never before)."""
    job = Job(id=new_id(Prefix.JOB), kind=kind, state=JobState.QUEUED, params=params, **references)
    if delay_seconds:
        job.due_at = func.now() + timedelta(seconds=delay_seconds)
    session.add(job)
    log.append(session, actor, job.id, JobState.QUEUED, kind=kind)
    session.execute(select(func.pg_notify(WAKE_CHANNEL, job.id)))
    session.flush()
    return job


def take_wakeups(session: Session, *, republish_seconds: float) -> list[tuple[str, JobKind]]:
    """Mark due queued jobs as announced and return (id, kind): unannounced ones, and those announced long ago.

    The pause between two announcements of a job doubles up to LONGEST_PAUSE, so that a long queue
    behind busy workers does not fill Redis.

    Rows are taken with SKIP LOCKED, so that any number of dispatchers may run; the caller sends
    the wake-ups before it commits, so that a failed send leaves them unannounced.
    """
    pause = func.least(
        LONGEST_PAUSE,
        func.greatest(timedelta(seconds=republish_seconds), Job.published_at - Job.due_at),
    )
    due = (
        select(Job.id)
        .where(
            Job.state == JobState.QUEUED,
            Job.due_at <= func.now(),
            or_(Job.published_at.is_(None), Job.published_at + pause < func.now()),
        )
        .order_by(Job.due_at, Job.id)
        .with_for_update(skip_locked=True)
    )
    rows = session.execute(
        update(Job)
        .where(Job.id.in_(due))
        .values(published_at=func.now())
        .returning(Job.id, Job.kind)
        .execution_options(synchronize_session=False)
    ).all()
    return sorted((job_id, JobKind(kind)) for job_id, kind in rows)


def seconds_until_due(session: Session) -> float | None:
    """Seconds until the next unannounced job becomes due (0 if one is); None if there is none."""
    seconds = session.scalar(
        select(func.extract("epoch", func.min(Job.due_at) - func.now())).where(
            Job.state == JobState.QUEUED, Job.published_at.is_(None)
        )
    )
    return None if seconds is None else max(0.0, float(seconds))


def claim(sessions: Sessions, job_id: str, *, lease_seconds: float) -> Lease | None:
    """Become the one executor of a queued, due job; None if it is not (or no longer) to be had.

    A duplicate or late wake-up ends here without effect. A second training job of a model waits:
    the partial unique index refuses it even if two workers pass the check at once.
    """
    token = secrets.token_hex(16)
    try:
        with sessions.begin() as session:
            job = _claim_row(session, job_id, token, lease_seconds)
            if job is None:
                return None
            log.append(session, log.SERVICE, job.id, JobState.RUNNING, attempt=job.attempt)
            if job.kind == JobKind.UNLEARN:
                model = session.get_one(Model, job.model_id, with_for_update=True)
                job.base_checkpoint_id = lineage.base_for_unlearning(session, model).id
            for request in job.requests:
                move(session, request, RequestState.RUNNING)
            return Lease(job.id, JobKind(job.kind), token, job.attempt)
    except IntegrityError:
        return None


def _claim_row(session: Session, job_id: str, token: str, lease_seconds: float) -> Job | None:
    other = aliased(Job)
    busy = (
        select(other.id)
        .where(
            other.model_id == Job.model_id,
            other.state.in_(LIVE_STATES),
            other.kind.in_(TRAINING_KINDS),
        )
        .exists()
    )
    claimed = session.execute(
        update(Job)
        .where(
            Job.id == job_id,
            Job.state == JobState.QUEUED,
            Job.due_at <= func.now(),
            or_(Job.kind.not_in(TRAINING_KINDS), ~busy),
        )
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            lease_token=token,
            lease_expires_at=func.now() + timedelta(seconds=lease_seconds),
            started_at=func.coalesce(Job.started_at, func.now()),
            progress=None,
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    return session.get_one(Job, claimed) if claimed else None


def heartbeat(
    session: Session, lease: Lease, *, lease_seconds: float, progress: dict[str, Any] | None = None
) -> None:
    """Extend the lease and record progress.

    Raises:
        LeaseLost: the job was given away; the caller stops working on it.
    """
    values: dict[str, Any] = {
        "lease_expires_at": func.now() + timedelta(seconds=lease_seconds),
    }
    if progress is not None:
        values["progress"] = progress
    changed = session.execute(
        update(Job)
        .where(
            Job.id == lease.job_id,
            Job.lease_token == lease.token,
            Job.state.in_(LIVE_STATES),
        )
        .values(**values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if changed is None:
        raise LeaseLost(f"{lease.job_id} no longer runs under this lease")


def start_evaluating(session: Session, lease: Lease) -> None:
    """The result is trained and is now being measured.

    Raises:
        LeaseLost: the job was given away.
    """
    move_leased(session, session.get_one(Job, lease.job_id), JobState.EVALUATING, token=lease.token)


def succeed(session: Session, lease: Lease, **values: Any) -> Job:
    """End the job well, in the transaction that records its result.

    Raises:
        LeaseLost: the job was given away; the transaction is to be rolled back.
    """
    job = session.get_one(Job, lease.job_id)
    move_leased(
        session,
        job,
        JobState.SUCCEEDED,
        token=lease.token,
        finished_at=func.now(),
        lease_token=None,
        lease_expires_at=None,
        **values,
    )
    _wake_waiting(session, job)
    return job


def fail(session: Session, lease: Lease, reason: str, *, detail: str = "") -> Job:
    """End the job for good with its reason; what waits for it (requests, data set, upload) learns of it.

    `detail` may name what other parties own: it is added to the reason of jobs only that the
    model's owner alone can see.

    Raises:
        LeaseLost: the job was given away.
    """
    job = session.get_one(Job, lease.job_id)
    move_leased(
        session,
        job,
        JobState.FAILED,
        token=lease.token,
        reason=f"{reason}: {detail}" if detail and job.kind in MODEL_OWNER_KINDS else reason,
        finished_at=func.now(),
        lease_token=None,
        lease_expires_at=None,
    )
    for request in job.requests:
        move(session, request, RequestState.FAILED, reason=reason)
    problem = {"code": "job-failed", "detail": reason}
    if job.dataset_id is not None:
        dataset = session.get_one(Dataset, job.dataset_id)
        move(session, dataset, DatasetState.OPEN, problem=problem)
    if job.checkpoint_id is not None:
        checkpoint = session.get_one(Checkpoint, job.checkpoint_id)
        move(session, checkpoint, CheckpointState.INVALID, problem=problem)
    _wake_waiting(session, job)
    return job


def _wake_waiting(session: Session, ended: Job) -> None:
    """Announce anew the jobs of the same model: they could not be claimed while this one ran."""
    if ended.model_id is not None:
        session.execute(
            update(Job)
            .where(Job.model_id == ended.model_id, Job.state == JobState.QUEUED)
            .values(published_at=None, due_at=func.greatest(Job.due_at, func.now()))
            .execution_options(synchronize_session=False)
        )
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))


def release(session: Session, lease: Lease, reason: str) -> None:
    """Give an unfinished job back to the queue, for example because the worker is being stopped.

    An orderly return does not count as an attempt.

    Raises:
        LeaseLost: the job was given away.
    """
    job = session.get_one(Job, lease.job_id)
    _requeue(session, job, lease.token, reason, attempt=job.attempt - 1)


def reclaim_expired(session: Session, *, max_attempts: int) -> list[Job]:
    """Take back jobs whose lease has run out: queue them again, or fail them after `max_attempts` starts."""
    expired: Sequence[Job] = session.scalars(
        select(Job)
        .where(and_(Job.state.in_(LIVE_STATES), Job.lease_expires_at < func.now()))
        .with_for_update(skip_locked=True, of=Job)
    ).all()
    for job in expired:
        if job.attempt < max_attempts:
            _requeue(session, job, str(job.lease_token), "its worker fell silent")
        else:
            reason = f"its worker fell silent {job.attempt} times; it will not be tried again"
            fail(
                session, Lease(job.id, JobKind(job.kind), str(job.lease_token), job.attempt), reason
            )
    return list(expired)


def _requeue(session: Session, job: Job, token: str, reason: str, **values: Any) -> None:
    move_leased(
        session,
        job,
        JobState.QUEUED,
        token=token,
        reason=reason,
        lease_token=None,
        lease_expires_at=None,
        published_at=None,
        due_at=func.now(),
        progress=None,
        **values,
    )
    for request in job.requests:
        move(session, request, RequestState.QUEUED)
    session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))
