"""Which workers there are, what waits for them, and whether one of them can do a job. Never gives work out."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.registry import policies
from expunge.registry.jobs import LIVE_STATES
from expunge.registry.lifecycles import JobState
from expunge.registry.tables import MODEL_OWNER_KINDS, Job, JobKind, Model, Worker

BEAT_SECONDS = 10.0
"""Between two signs of life of a worker."""
GONE_AFTER = timedelta(seconds=3.5 * BEAT_SECONDS)
"""Three signs of life are missing."""
FORGOTTEN_AFTER = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Presence:
    """What a worker says of itself; the columns of `Worker` of the same names."""

    name: str
    role: str
    kinds: list[str]
    host: str
    pid: int
    version: str
    device: str
    device_name: str | None
    device_id: str | None
    memory_bytes: int | None
    labels: list[str]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Queue:
    """What there is to do of one kind."""

    kind: JobKind
    waiting: int
    """Due and not begun."""
    later: int
    """Not due yet: in a batching window, or in the pause after a crash."""
    running: int
    oldest_seconds: float | None
    """Since the oldest of those that wait became due."""


def beat(session: Session, presence: Presence, *, stopping: bool) -> None:
    """Enter a worker, or note that it still lives."""
    said = asdict(presence) | {"stopping": stopping, "last_seen_at": func.now()}
    changed = {name: value for name, value in said.items() if name != "name"}
    session.execute(
        insert(Worker).values(**said).on_conflict_do_update(index_elements=["name"], set_=changed)
    )


def leave(session: Session, name: str) -> None:
    """Strike out a worker that has ended in good order."""
    session.execute(delete(Worker).where(Worker.name == name))


def forget_gone(session: Session) -> None:
    """Strike out workers that nothing was heard of for a day."""
    session.execute(delete(Worker).where(Worker.last_seen_at < func.now() - FORGOTTEN_AFTER))


def is_live() -> ColumnElement[bool]:
    """Condition: the worker was heard of lately."""
    return Worker.last_seen_at >= func.now() - GONE_AFTER


def on_same_device(session: Session, presence: Presence) -> Sequence[str]:
    """Names of other live workers of the same role that use this worker's device, which is meant for one."""
    if presence.device_id is None:
        return []
    same = select(Worker.name).where(
        Worker.device_id == presence.device_id,
        Worker.role == presence.role,
        Worker.name != presence.name,
        is_live(),
    )
    return session.scalars(same.order_by(Worker.name)).all()


def held(session: Session, names: Collection[str]) -> dict[str, list[Job]]:
    """The jobs that each of these workers holds a lease on, newest first: one, or a review beside another."""
    found: dict[str, list[Job]] = {}
    running = select(Job).where(Job.state.in_(LIVE_STATES), Job.worker.in_(names))
    for job in session.scalars(running.order_by(Job.claimed_at.desc())):
        found.setdefault(str(job.worker), []).append(job)
    return found


def queues(session: Session) -> list[Queue]:
    """One for every kind of job, also where nothing waits."""
    due = Job.due_at <= func.now()
    queued = Job.state == JobState.QUEUED
    counted = (
        select(
            Job.kind,
            func.count().filter(queued, due).label("waiting"),
            func.count().filter(queued, ~due).label("later"),
            func.count().filter(Job.state.in_(LIVE_STATES)).label("running"),
            func.extract("epoch", func.now() - func.min(Job.due_at).filter(queued, due)),
        )
        .where(Job.state.in_((JobState.QUEUED, *LIVE_STATES)))
        .group_by(Job.kind)
    )
    found = {kind: Queue(kind, 0, 0, 0, None) for kind in JobKind}
    for kind, waiting, later, running, oldest in session.execute(counted):
        seconds = None if oldest is None else float(oldest)
        found[JobKind(kind)] = Queue(JobKind(kind), waiting, later, running, seconds)
    return list(found.values())


def unserved(session: Session, jobs: Sequence[Job]) -> dict[str, str]:
    """Why nobody can do those of these queued jobs that no live worker would take, by job id."""
    queued = [job for job in jobs if job.state == JobState.QUEUED]
    if not queued:
        return {}
    workers = session.execute(
        select(Worker.kinds, Worker.labels).where(is_live(), ~Worker.stopping)
    ).all()
    stored = select(Model.id, Model.policy).where(Model.id.in_({job.model_id for job in queued}))
    asked = {model_id: policies.of(row).worker_labels for model_id, row in session.execute(stored)}
    reasons = {}
    for job in queued:
        offered = [set(labels) for kinds, labels in workers if job.kind in kinds]
        labels = asked.get(job.model_id, ()) if job.kind in MODEL_OWNER_KINDS else ()
        if not offered:
            reasons[job.id] = f"no live worker does jobs of the kind {job.kind}"
        elif not any(offer.issuperset(labels) for offer in offered):
            named = ", ".join(labels)
            reasons[job.id] = f"no live worker has the label{'s' * (len(labels) > 1)} {named}"
    return reasons
