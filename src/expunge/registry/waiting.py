"""The waiting side of the queue: enqueue, announce, and choose who is next. Never touches a running job."""

import secrets
from collections.abc import Collection
from datetime import timedelta
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import Select, Update, and_, case, cast, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.elements import ColumnElement

from expunge.registry import exposure, jobs, lineage, log, spans
from expunge.registry.database import Sessions
from expunge.registry.errors import Conflict
from expunge.registry.ids import Prefix, new_id
from expunge.registry.jobs import LIVE_STATES, WAKE_CHANNEL, Lease
from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.tables import MODEL_OWNER_KINDS, TRAINING_KINDS, Job, JobKind, Model
from expunge.registry.transitions import move_requests

LONGEST_PAUSE = timedelta(minutes=5)
"""Between two announcements of a job that waits."""
MAX_PRIORITY = 9
RANKS = {
    JobKind.UNLEARN: 2,
    JobKind.AUDIT: 1,
    JobKind.ENCODE: 1,
    JobKind.PRETRAIN: 1,
    JobKind.COMPARE: 0,
    JobKind.SEAL: 0,
    JobKind.VERIFY: 0,
    JobKind.REVIEW: -1,
}
"""Which kinds of work go first where one worker does several."""
SECONDS_PER_RANK = 3600.0
"""Waiting this long counts as much as the next higher rank, so that nothing waits for ever."""
NOTHING_LEFT = "the model holds none of this data any more"
KNOWN = tuple(JobKind)
"""Jobs of other kinds are made, and announced, by a newer version beside this one."""
CANDIDATES = 8
"""Jobs looked at at once: others may take the first ones at the same moment."""


def enqueue(
    session: Session,
    kind: JobKind,
    *,
    actor: str,
    owner_id: str,
    params: dict[str, Any],
    job_id: str | None = None,
    delay_seconds: float = 0,
    **references: Any,
) -> Job:
    """Add a queued job of this owner; its wake-up leaves when the transaction commits, never before."""
    job = Job(
        id=job_id or new_id(Prefix.JOB),
        kind=kind,
        state=JobState.QUEUED,
        owner_id=owner_id,
        params=params,
        **references,
    )
    if delay_seconds:
        job.due_at = func.now() + timedelta(seconds=delay_seconds)
    session.add(job)
    log.append(session, actor, job.id, JobState.QUEUED, kind=kind)
    session.execute(select(func.pg_notify(WAKE_CHANNEL, job.id)))
    session.flush()
    spans.queued(job.id, kind)
    return job


def make_due(session: Session, job: Job) -> None:
    """End a queued job's batching window now."""
    session.execute(
        update(Job)
        .where(Job.id == job.id, Job.state == JobState.QUEUED, Job.due_at > func.now())
        .values(due_at=func.now(), published_at=None)
        .execution_options(synchronize_session=False)
    )
    session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))


def prioritise(session: Session, actor: str, job: Job, priority: int) -> None:
    """Let a waiting job go before (or after) others of the same owner and kind.

    Raises:
        Conflict: it does not wait any more.
    """
    changed = session.execute(
        update(Job)
        .where(Job.id == job.id, Job.state == JobState.QUEUED)
        .values(priority=priority)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    session.refresh(job)
    if changed is None:
        raise Conflict(f"{job.id} is {job.state}; only a waiting job has a turn.", state=job.state)
    log.append(session, actor, job.id, "priority-set", priority=priority)


def take_wakeups(session: Session, *, republish_seconds: float) -> list[JobKind]:
    """Mark due queued jobs as announced and return their kinds: unannounced ones, and those announced long ago.

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
            Job.kind.in_(KNOWN),
            Job.due_at <= func.now(),
            or_(Job.published_at.is_(None), Job.published_at + pause < func.now()),
        )
        .order_by(Job.due_at, Job.id)
        .with_for_update(skip_locked=True)
    )
    kinds = session.scalars(
        update(Job)
        .where(Job.id.in_(due))
        .values(published_at=func.now())
        .returning(Job.kind)
        .execution_options(synchronize_session=False)
    ).all()
    return [JobKind(kind) for kind in kinds]


def seconds_until_due(session: Session) -> float | None:
    """Seconds until the next unannounced job becomes due (0 if one is); None if there is none."""
    seconds = session.scalar(
        select(func.extract("epoch", func.min(Job.due_at) - func.now())).where(
            Job.state == JobState.QUEUED, Job.kind.in_(KNOWN), Job.published_at.is_(None)
        )
    )
    return None if seconds is None else max(0.0, float(seconds))


def claim_next(
    sessions: Sessions,
    kinds: Collection[JobKind],
    *,
    worker: str,
    lease_seconds: float,
    labels: Collection[str] = (),
) -> Lease | None:
    """Become the one executor of the job whose turn it is among those of these kinds; None if none waits.

    Jobs whose model's policy asks for other labels than these are left to others.

    Order: the kind's rank, where waiting counts too; then owners with the fewest running jobs,
    and of those the one that was served longest ago; then the owner's own priority, then age.
    """
    turns = _turns(tuple(kinds), tuple(labels))
    while True:
        with sessions() as session:
            waiting = session.scalars(turns).all()
        if not waiting:
            return None
        # All of them may go to others at the same moment, who leave more behind.
        for job_id in waiting:
            lease = claim(sessions, job_id, worker=worker, lease_seconds=lease_seconds)
            if lease is not None:
                return lease


@lru_cache
def _turns(kinds: tuple[JobKind, ...], labels: tuple[str, ...]) -> Select[str]:
    """Ids of the first jobs of these kinds that can be claimed, in turn; each owner is looked at once.

    A worker asks the same again and again: putting the statement together costs more than running it.
    """
    jobs = (
        select(Job.id, Job.owner_id, Job.kind, Job.priority, Job.due_at)
        .where(_claimable(), Job.kind.in_(kinds), _fits(labels))
        .cte("claimable")
    )
    owners = select(jobs.c.owner_id).distinct().cte("owners")
    running = (
        select(func.count())
        .where(Job.owner_id == owners.c.owner_id, Job.state.in_(LIVE_STATES), Job.kind.in_(kinds))
        .scalar_subquery()
    )
    served = (
        select(func.max(Job.claimed_at))
        .where(Job.owner_id == owners.c.owner_id, Job.kind.in_(kinds))
        .scalar_subquery()
    )
    fair = (
        select(owners.c.owner_id, running.label("running"), served.label("served"))
        .cte("fair")
        .prefix_with("MATERIALIZED")
    )
    waited = func.extract("epoch", func.now() - jobs.c.due_at) / SECONDS_PER_RANK
    rank = case(RANKS, value=jobs.c.kind) + func.floor(waited)
    return (
        select(jobs.c.id)
        .join(fair, fair.c.owner_id == jobs.c.owner_id)
        .order_by(
            rank.desc(),
            fair.c.running,
            fair.c.served.nulls_first(),
            jobs.c.priority.desc(),
            jobs.c.due_at,
            jobs.c.id,
        )
        .limit(CANDIDATES)
    )


def _claimable() -> ColumnElement[bool]:
    """Queued, due, and no other training job of its model runs."""
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
    return and_(
        Job.state == JobState.QUEUED,
        Job.due_at <= func.now(),
        or_(Job.kind.not_in(TRAINING_KINDS), ~busy),
    )


def _fits(labels: Collection[str]) -> ColumnElement[bool]:
    """All labels that the job's model asks for now are among these; also those of a job that waits already change."""
    asked = select(Model.policy["worker_labels"]).where(Model.id == Job.model_id).scalar_subquery()
    none: list[str] = []
    return or_(
        Job.kind.not_in(MODEL_OWNER_KINDS),
        func.coalesce(asked, cast(none, JSONB)).contained_by(cast(list(labels), JSONB)),
    )


def claim(sessions: Sessions, job_id: str, *, worker: str, lease_seconds: float) -> Lease | None:
    """Become the one executor of a queued, due job; None if it is not (or no longer) to be had.

    A removal of data that the model does not hold any more is done at once, without an executor.

    A second training job of a model waits: the partial unique index refuses it even if two
    workers pass the check at once. Rows are locked in the order model, job, request, as by
    everything that changes several of them.
    """
    token = secrets.token_hex(16)
    try:
        with sessions.begin() as session:
            model = session.scalar(
                select(Model)
                .join(Job, Job.model_id == Model.id)
                .where(Job.id == job_id, Job.kind == JobKind.UNLEARN)
                .with_for_update(of=Model)
            )
            job = _claim_row(session, job_id, token, worker, lease_seconds)
            if job is None:
                return None
            log.append(
                session, log.SERVICE, job.id, JobState.RUNNING, attempt=job.attempt, worker=worker
            )
            lease = Lease(job.id, JobKind(job.kind), token, job.attempt)
            if model is not None:
                base = lineage.base_for_unlearning(session, model)
                job.base_checkpoint_id = base.id
                # Committed to before the work begins: an audit's "before" can be held against it.
                known = {"before_checkpoint_id": base.id, "before_digest": base.digest}
                move_requests(session, job, RequestState.RUNNING, detail=known)
                if not lineage.to_forget(session, job, base):
                    _end_at_once(session, lease, model)
                    return None
            return lease
    except IntegrityError:
        return None


def _end_at_once(session: Session, lease: Lease, model: Model) -> None:
    """What was asked for is true already: the model was trained anew without this data."""
    job = jobs.succeed(session, lease, metrics={"seconds": 0.0})
    move_requests(session, job, RequestState.COMPLETED, reason=NOTHING_LEFT)
    exposure.end(session, model.id, str(model.head_checkpoint_id), actor=log.SERVICE)


def _claim_row(
    session: Session, job_id: str, token: str, worker: str, lease_seconds: float
) -> Job | None:
    claimed = session.execute(
        _taking()
        .where(Job.id == job_id)
        .values(
            worker=worker,
            lease_token=token,
            lease_expires_at=func.now() + timedelta(seconds=lease_seconds),
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    return session.get_one(Job, claimed) if claimed else None


@cache
def _taking() -> Update:
    """Of a job that can be claimed; putting the statement together costs more than running it."""
    return (
        update(Job)
        .where(_claimable())
        .values(
            state=JobState.RUNNING,
            attempt=Job.attempt + 1,
            started_at=func.coalesce(Job.started_at, func.now()),
            claimed_at=func.now(),
            reason=None,
            progress=None,
        )
    )
