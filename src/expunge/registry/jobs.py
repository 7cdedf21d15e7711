"""A job's attempts: report, finish, fail, try again, give back, cancel, take back. Never does the work.

Every write of an attempt names its lease token: one that lost its lease writes nothing any more.
"""

import random
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from expunge.registry import log
from expunge.registry.lifecycles import CheckpointState, DatasetState, JobState, RequestState
from expunge.registry.tables import MODEL_OWNER_KINDS, Checkpoint, Dataset, Job, JobKind
from expunge.registry.transitions import LeaseLost, move, move_leased, move_requests

WAKE_CHANNEL = "expunge_jobs"
"""PostgreSQL notification channel: something may have become due."""
ENDED_CHANNEL = "expunge_ended"
"""PostgreSQL notification channel: the job of this id has ended, for those who wait for its answer."""
LIVE_STATES = (JobState.RUNNING, JobState.EVALUATING)
LONGEST_RETRY = timedelta(minutes=5)
"""Between two attempts."""

FailureKind = Literal[
    "out-of-memory",
    "signal",
    "exception",
    "time-limit",
    "lease-expired",
    "refused",
    "damaged-object",
    "outage",
]
NO_LEASE: dict[str, Any] = {"lease_token": None, "lease_expires_at": None}
NO_SNAPSHOT: dict[str, Any] = {"snapshot_key": None, "snapshot_step": None}


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one attempt to work on a job; every write of the attempt carries the token."""

    job_id: str
    kind: JobKind
    token: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt went wrong: `reason` for everybody concerned, `words` for the model's owner only."""

    kind: FailureKind
    reason: str
    words: str = ""

    def __post_init__(self) -> None:
        """Words of a dying process may hold anything; PostgreSQL's text may not."""
        for name in ("reason", "words"):
            plain = getattr(self, name).replace("\0", "")
            object.__setattr__(self, name, plain.encode("utf-8", "replace").decode())


def heartbeat(
    session: Session, lease: Lease, *, lease_seconds: float, progress: dict[str, Any] | None = None
) -> None:
    """Extend the lease and record progress.

    Raises:
        LeaseLost: the job was given away or cancelled; the caller stops working on it.
    """
    values: dict[str, Any] = {"lease_expires_at": func.now() + timedelta(seconds=lease_seconds)}
    if progress is not None:
        values["progress"] = progress
    _write(session, lease, values)


def note_snapshot(session: Session, lease: Lease, key: str, step: int) -> None:
    """Let the next attempt go on from this stored snapshot.

    Raises:
        LeaseLost: the job was given away; the object stays unnamed.
    """
    _write(session, lease, {"snapshot_key": key, "snapshot_step": step})


def note_step(session: Session, lease: Lease, step: int) -> None:
    """The attempt has got so far; for work whose progress is in rows, not in a snapshot.

    Raises:
        LeaseLost: the job was given away.
    """
    _write(session, lease, {"snapshot_step": step})


def note_resumed(session: Session, lease: Lease, step: int) -> None:
    """The attempt goes on from a snapshot, after that many steps.

    Raises:
        LeaseLost: the job was given away.
    """
    _write(session, lease, {"snapshot_step": step})
    log.append(session, log.SERVICE, lease.job_id, "resumed", attempt=lease.attempt, step=step)


def drop_snapshot(session: Session, lease: Lease, reason: str) -> None:
    """Forget a snapshot that cannot be gone on from; the log says why.

    Raises:
        LeaseLost: the job was given away.
    """
    _write(session, lease, NO_SNAPSHOT)
    log.append(
        session, log.SERVICE, lease.job_id, "snapshot-dropped", attempt=lease.attempt, reason=reason
    )


def _write(session: Session, lease: Lease, values: dict[str, Any]) -> None:
    changed = session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.lease_token == lease.token, Job.state.in_(LIVE_STATES))
        .values(**values)
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if changed is None:
        raise LeaseLost(f"{lease.job_id} no longer runs under this lease")


def _held(session: Session, lease: Lease) -> Job:
    """The job of an attempt, row-locked, if it still runs under this lease."""
    job = session.get_one(Job, lease.job_id, with_for_update=True, populate_existing=True)
    if job.lease_token != lease.token:
        raise LeaseLost(f"{lease.job_id} no longer runs under this lease")
    return job


def start_evaluating(session: Session, lease: Lease) -> None:
    """The result is trained and is now being measured; saying so again changes nothing.

    Raises:
        LeaseLost: the job was given away.
    """
    job = _held(session, lease)
    if job.state != JobState.EVALUATING:
        move_leased(session, job, JobState.EVALUATING, token=lease.token)


def succeed(session: Session, lease: Lease, **values: Any) -> Job:
    """End the job well, in the transaction that records its result.

    Raises:
        LeaseLost: the job was given away; the transaction is to be rolled back.
    """
    job = session.get_one(Job, lease.job_id)
    ended = NO_LEASE | NO_SNAPSHOT | {"seconds_used": _seconds_used()}
    move_leased(session, job, JobState.SUCCEEDED, token=lease.token, **ended, **values)
    _announce_end(session, job)
    return job


def fail(session: Session, lease: Lease, failure: Failure) -> Job:
    """End the job for good with its reason; what waits for it (requests, data set, upload) learns of it.

    The failure's words may name what other parties own: they are added to the reason of jobs only
    that the model's owner alone can see.

    Raises:
        LeaseLost: the job was given away.
    """
    job = session.get_one(Job, lease.job_id)
    told = failure.words and job.kind in MODEL_OWNER_KINDS
    move_leased(
        session,
        job,
        JobState.FAILED,
        token=lease.token,
        reason=f"{failure.reason}: {failure.words}" if told else failure.reason,
        detail={"kind": failure.kind},
        failure=asdict(failure) | {"attempt": job.attempt, "step": job.snapshot_step or 0},
        seconds_used=_seconds_used(),
        **NO_LEASE,
        **NO_SNAPSHOT,
    )
    move_requests(session, job, RequestState.FAILED, reason=failure.reason)
    problem = {"code": "job-failed", "detail": failure.reason}
    if job.dataset_id is not None:
        dataset = session.get_one(Dataset, job.dataset_id)
        move(session, dataset, DatasetState.OPEN, problem=problem)
    if job.checkpoint_id is not None:
        checkpoint = session.get_one(Checkpoint, job.checkpoint_id)
        move(session, checkpoint, CheckpointState.INVALID, problem=problem)
    _announce_end(session, job)
    return job


def recomputes(job: Job) -> bool:
    """Whether an attempt ran out of memory, so that all that follow make activations anew instead of keeping them."""
    return job.failure is not None and bool(job.failure.get("recompute"))


def retry(
    session: Session, lease: Lease, failure: Failure, *, max_attempts: int, retry_seconds: float
) -> Job:
    """Queue a crashed job again after a pause, or fail it for good.

    It fails after `max_attempts` crashes in a row that got no further: one with a newer snapshot
    than the last crash has made progress, and its count begins anew.

    Raises:
        LeaseLost: the job was given away.
    """
    job = _held(session, lease)
    step, last = job.snapshot_step or 0, job.failure
    furthest = max(step, last["step"]) if last is not None else step
    crashes = last["crashes"] + 1 if last is not None and step <= last["step"] else 1
    if crashes >= max_attempts:
        reason = f"{failure.reason}; {crashes} attempts got no further, it is not tried again"
        return fail(session, lease, replace(failure, reason=reason))
    detail = {"kind": failure.kind, "words": failure.words}
    told = asdict(failure) | {"attempt": job.attempt, "step": furthest, "crashes": crashes}
    if job.kind in MODEL_OWNER_KINDS and (failure.kind == "out-of-memory" or recomputes(job)):
        detail["memory"] = "recompute"
        told["recompute"] = True
    _requeue(
        session,
        job,
        lease.token,
        failure.reason,
        detail=detail,
        pause=_pause(retry_seconds, crashes),
        failure=told,
    )
    return job


def release(session: Session, lease: Lease, reason: str) -> None:
    """Give an unfinished job back to the queue because the worker is being stopped.

    An orderly return is no crash.

    Raises:
        LeaseLost: the job was given away.
    """
    job = session.get_one(Job, lease.job_id)
    _requeue(session, job, lease.token, reason)


def wait_out(
    session: Session, lease: Lease, reason: str, *, max_outages: int, retry_seconds: float
) -> None:
    """Give a job back because a store cannot be reached; that is no crash, but has a limit of its own.

    Raises:
        LeaseLost: the job was given away.
    """
    job = _held(session, lease)
    if job.outages >= max_outages:
        fail(session, lease, Failure("outage", f"{reason} ({job.outages} times)"))
        return
    _requeue(
        session,
        job,
        lease.token,
        reason,
        pause=_pause(retry_seconds, job.outages + 1),
        outages=job.outages + 1,
        # Waiting is no work of the job's.
        seconds_used=job.seconds_used,
    )


def cancel(session: Session, job: Job, *, actor: str, reason: str) -> None:
    """End a waiting or running job, row-locked, and its requests; a running attempt loses its lease in the same moment.

    Raises:
        StateChanged: it has ended already.
    """
    values = NO_LEASE | NO_SNAPSHOT
    if job.lease_token is not None:
        values |= {"seconds_used": _seconds_used()}
    move(session, job, JobState.CANCELLED, actor=actor, reason=reason, **values)
    move_requests(session, job, RequestState.CANCELLED, actor=actor, reason=reason)
    _announce_end(session, job)


def reclaim_expired(session: Session, *, max_attempts: int) -> list[Job]:
    """Take back jobs whose lease has run out, as after a crash (see `retry`)."""
    expired = session.scalars(
        select(Job)
        .where(
            Job.state.in_(LIVE_STATES),
            # Others are a newer version's, whose dispatcher takes them back.
            Job.kind.in_(tuple(JobKind)),
            Job.lease_expires_at < func.now(),
        )
        .with_for_update(skip_locked=True, of=Job)
    ).all()
    silent = Failure("lease-expired", "its worker fell silent")
    for job in expired:
        lease = Lease(job.id, JobKind(job.kind), str(job.lease_token), job.attempt)
        retry(session, lease, silent, max_attempts=max_attempts, retry_seconds=0)
    return list(expired)


def take_back(session: Session, *, reason: str) -> list[str]:
    """Queue all running jobs again, whose workers are not asked; their ids. What the attempts used is not counted.

    The workers may go on for a while: they have lost their lease, and write nothing.
    """
    running = session.scalars(
        select(Job).where(Job.state.in_(LIVE_STATES)).order_by(Job.id).with_for_update(of=Job)
    ).all()
    for job in running:
        _requeue(session, job, str(job.lease_token), reason, seconds_used=job.seconds_used)
    return [job.id for job in running]


def _announce_end(session: Session, ended: Job) -> None:
    """Tell those who wait for the job that it has ended, and announce anew the jobs that waited for it.

    Jobs of the same model could not be claimed while this one ran.

    Those that somebody else holds are left out, which keeps two transactions from waiting for each
    other; they are announced again later.
    """
    session.execute(select(func.pg_notify(ENDED_CHANNEL, ended.id)))
    if ended.model_id is not None:
        held_up = (
            select(Job.id)
            .where(Job.model_id == ended.model_id, Job.state == JobState.QUEUED)
            .with_for_update(skip_locked=True)
        )
        session.execute(
            update(Job)
            .where(Job.id.in_(held_up))
            .values(published_at=None)
            .execution_options(synchronize_session=False)
        )
        session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))


def _requeue(
    session: Session,
    job: Job,
    token: str,
    reason: str,
    *,
    pause: timedelta | None = None,
    detail: dict[str, Any] | None = None,
    **values: Any,
) -> None:
    """Without a pause it keeps its place in the queue."""
    move_leased(
        session,
        job,
        JobState.QUEUED,
        token=token,
        reason=reason,
        detail=detail,
        published_at=None,
        due_at=Job.due_at if pause is None else func.now() + pause,
        progress=None,
        **{"seconds_used": _seconds_used()} | NO_LEASE | values,
    )
    move_requests(session, job, RequestState.QUEUED, reason=reason)
    session.execute(text(f"NOTIFY {WAKE_CHANNEL}"))


def _pause(seconds: float, times: int) -> timedelta:
    """Doubles with every time, up to LONGEST_RETRY; at random in its upper half, so that many do not return at once."""
    longest = min(LONGEST_RETRY.total_seconds(), seconds * 2 ** (times - 1))
    return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311 - not a secret


def _seconds_used() -> Any:
    return Job.seconds_used + func.extract("epoch", func.now() - Job.claimed_at)
