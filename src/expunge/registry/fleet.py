"""Which workers there are, what waits for them, and whether one of them can do a job. Never gives work out."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
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
DISPATCHER = "dispatch"
"""Role of a process that does no jobs but announces them; it is entered among the workers too."""


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


def now(session: Session) -> datetime:
    """By the database's clock, which writes all times of workers and jobs."""
    return session.execute(select(func.now())).scalar_one()


def workers(session: Session) -> Sequence[Worker]:
    """All that are not forgotten, by role and name."""
    return session.scalars(select(Worker).order_by(Worker.role, Worker.name)).all()


def is_live(worker: Worker, now: datetime) -> bool:
    """Whether it was heard of lately; `now` by the database's clock."""
    return now - worker.last_seen_at <= GONE_AFTER


def sharing(workers: Sequence[Worker], now: datetime) -> dict[str, list[str]]:
    """For live workers that share a GPU, which is meant for one, with live ones of their role: the others' names."""
    users: dict[tuple[str, str], list[str]] = {}
    for each in workers:
        if each.device_id is not None and is_live(each, now):
            users.setdefault((each.role, each.device_id), []).append(each.name)
    return {
        name: [other for other in names if other != name]
        for names in users.values()
        for name in names
        if len(names) > 1
    }


def held(session: Session, names: Collection[str]) -> dict[str, list[Job]]:
    """The jobs that each of these workers holds a lease on, newest first: one, or a review beside another."""
    found: dict[str, list[Job]] = {}
    running = select(Job).where(Job.state.in_(LIVE_STATES), Job.worker.in_(names))
    for job in session.scalars(running.order_by(Job.claimed_at.desc())):
        found.setdefault(str(job.worker), []).append(job)
    return found


def queues(session: Session) -> list[Queue]:
    """One for every kind of job that this version knows, also where nothing waits."""
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
        .where(Job.state.in_((JobState.QUEUED, *LIVE_STATES)), Job.kind.in_(tuple(JobKind)))
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
    stored = select(Model.id, Model.policy).where(Model.id.in_({job.model_id for job in queued}))
    asked = {model_id: policies.of(row).worker_labels for model_id, row in session.execute(stored)}
    offers = _offers(session)
    reasons = {job.id: _objection(job.kind, asked.get(job.model_id, ()), offers) for job in queued}
    return {job_id: reason for job_id, reason in reasons.items() if reason is not None}


def all_unserved(session: Session) -> dict[str, int]:
    """Why nobody can do due jobs that wait, and how many there are for each reason."""
    asked = Model.policy["worker_labels"]
    counted = (
        select(Job.kind, asked, func.count())
        .outerjoin(Model, Model.id == Job.model_id)
        .where(Job.state == JobState.QUEUED, Job.due_at <= func.now())
        .group_by(Job.kind, asked)
    )
    offers, found = _offers(session), Counter[str]()
    for kind, labels, jobs in session.execute(counted):
        reason = _objection(kind, labels or (), offers)
        if reason is not None:
            found[reason] += jobs
    return dict(found)


def _offers(session: Session) -> list[tuple[list[str], list[str]]]:
    """Kinds and labels of all live workers that take jobs."""
    live = select(Worker.kinds, Worker.labels).where(
        Worker.last_seen_at >= func.now() - GONE_AFTER, ~Worker.stopping
    )
    return [(kinds, labels) for kinds, labels in session.execute(live)]


def _objection(
    kind: str, labels: Collection[str], offers: list[tuple[list[str], list[str]]]
) -> str | None:
    wanted = set(labels) if kind in MODEL_OWNER_KINDS else set()
    able = [set(offered) for kinds, offered in offers if kind in kinds]
    if not able:
        return f"no live worker does jobs of the kind {kind}"
    if any(wanted <= offered for offered in able):
        return None
    one = "label" if len(wanted) == 1 else "labels"
    return f"no live worker has the {one} {', '.join(sorted(wanted))}"
