"""The one way a state begins and changes: a compare-and-set in the caller's transaction, with its log row."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from expunge.registry import lifecycles, log
from expunge.registry.errors import Conflict
from expunge.registry.tables import Checkpoint, Dataset, Job, Request

Living = Dataset | Checkpoint | Request | Job
LIVES = {
    Dataset: lifecycles.DATASET,
    Checkpoint: lifecycles.CHECKPOINT,
    Request: lifecycles.REQUEST,
    Job: lifecycles.JOB,
}


class StateChanged(Conflict):
    """The row is not (or no longer) in a state from which the transition is allowed."""

    slug, title = "state-conflict", "Conflict with the current state"


class LeaseLost(Exception):
    """The job's lease belongs to another attempt: nothing of this one may be written any more."""


def add(session: Session, row: Living, path: Sequence[str], *, actor: str, **detail: Any) -> None:
    """Insert a new row in the last of these states, and log all of them; `detail` goes to the first log row.

    Nobody else sees the row before the transaction ends, so nothing has to be compared. The first
    state is the actor's doing, what follows by itself is the service's.

    Raises:
        StateChanged: its life does not allow the path.
    """
    for before, after in pairwise(path):
        if after not in LIVES[type(row)][before]:
            raise StateChanged(f"{row.id} cannot become {after} from {before}.", state=before)
    row.state = path[-1]
    session.add(row)
    session.flush()
    log.append(session, actor, row.id, path[0], **detail)
    for state in path[1:]:
        log.append(session, log.SERVICE, row.id, state)


def move(
    session: Session,
    row: Living,
    to: str,
    *,
    actor: str = log.SERVICE,
    reason: str | None = None,
    detail: dict[str, Any] | None = None,
    **values: Any,
) -> None:
    """Set the row's state to `to` if its life allows that, together with `values`, and log it with `detail`.

    Raises:
        StateChanged: the database's row is in a state that does not lead to `to`; nothing changed.
    """
    if not _compare_and_set(session, row, to, {}, _completed(type(row), to, reason, values)):
        session.refresh(row, ["state"])
        raise StateChanged(f"{row.id} is {row.state}; it cannot become {to}.", state=row.state)
    told = (detail or {}) | ({"reason": reason} if reason else {})
    log.append(session, actor, row.id, to, **told)


def move_leased(
    session: Session,
    job: Job,
    to: str,
    *,
    token: str,
    reason: str | None = None,
    detail: dict[str, Any] | None = None,
    **values: Any,
) -> None:
    """As `move`, for the attempt that holds the job's lease; `detail` goes to the log row as well.

    Raises:
        LeaseLost: the job is no longer running under this token; nothing changed.
    """
    told = {"attempt": job.attempt, "worker": job.worker}
    values = _completed(Job, to, reason, values)
    if not _compare_and_set(session, job, to, {"lease_token": token}, values):
        raise LeaseLost(f"{job.id} no longer runs under this lease")
    told |= (detail or {}) | ({"reason": reason} if reason else {})
    log.append(session, log.SERVICE, job.id, to, **told)


def move_requests(
    session: Session,
    job: Job,
    to: str,
    *,
    actor: str = log.SERVICE,
    reason: str | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """As `move`, for all requests of a job in one statement: there may be thousands.

    Raises:
        StateChanged: one of them is in a state that does not lead to `to`; the caller rolls back.
    """
    session.flush()
    changed = session.scalars(
        update(Request)
        .where(
            Request.job_id == job.id,
            Request.state.in_(lifecycles.origins(lifecycles.REQUEST, to)),
        )
        .values(state=to, **_completed(Request, to, reason, {}))
        .returning(Request.id)
        .execution_options(synchronize_session=False)
    ).all()
    expected = session.scalar(
        select(func.count()).select_from(Request).where(Request.job_id == job.id)
    )
    if len(changed) != expected:
        raise StateChanged(f"a request of {job.id} cannot become {to}")
    for row in session.identity_map.values():
        if isinstance(row, Request) and row.job_id == job.id:
            session.expire(row)
    told = (detail or {}) | ({"reason": reason} if reason else {})
    log.append_each(session, actor, sorted(changed), to, **told)


def _completed(
    table: type[Living], to: str, reason: str | None, values: dict[str, Any]
) -> dict[str, Any]:
    """The values with what every change of a request or job sets: its reason, and when it ended."""
    if table not in (Request, Job):
        return values
    final = lifecycles.is_final(LIVES[table], to)
    return values | {"reason": reason} | ({"finished_at": func.now()} if final else {})


def _compare_and_set(
    session: Session, row: Living, to: str, expected: dict[str, Any], values: dict[str, Any]
) -> bool:
    table = type(row)
    session.flush()
    statement = (
        update(table)
        .where(table.id == row.id, table.state.in_(lifecycles.origins(LIVES[table], to)))
        .filter_by(**expected)
        .values(state=to, **values)
        .returning(table.id)
        .execution_options(synchronize_session=False)
    )
    changed = session.execute(statement).scalar_one_or_none() is not None
    if changed:
        session.refresh(row)
    return changed
