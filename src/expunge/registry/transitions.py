"""The one way a state changes: a compare-and-set in the caller's transaction, with its log row."""

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from expunge.registry import lifecycles, log
from expunge.registry.errors import Conflict
from expunge.registry.tables import Checkpoint, Dataset, Job, Request

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


def move(
    session: Session,
    row: Dataset | Checkpoint | Request | Job,
    to: str,
    *,
    actor: str = log.SERVICE,
    reason: str | None = None,
    **values: Any,
) -> None:
    """Set the row's state to `to` if its life allows that, together with `values`, and log it.

    Raises:
        StateChanged: the database's row is in a state that does not lead to `to`; nothing changed.
    """
    if not _compare_and_set(session, row, to, {}, _with_reason(row, reason, values)):
        session.refresh(row, ["state"])
        raise StateChanged(f"{row.id} is {row.state}; it cannot become {to}.", state=row.state)
    log.append(session, actor, row.id, to, **({"reason": reason} if reason else {}))


def move_leased(
    session: Session,
    job: Job,
    to: str,
    *,
    token: str,
    reason: str | None = None,
    **values: Any,
) -> None:
    """As `move`, for the attempt that holds the job's lease.

    Raises:
        LeaseLost: the job is no longer running under this token; nothing changed.
    """
    values = _with_reason(job, reason, values)
    if not _compare_and_set(session, job, to, {"lease_token": token}, values):
        raise LeaseLost(f"{job.id} no longer runs under this lease")
    detail = {"attempt": job.attempt} | ({"reason": reason} if reason else {})
    log.append(session, log.SERVICE, job.id, to, **detail)


def _with_reason(
    row: Dataset | Checkpoint | Request | Job, reason: str | None, values: dict[str, Any]
) -> dict[str, Any]:
    return values | {"reason": reason} if isinstance(row, Job | Request) else values


def _compare_and_set(
    session: Session,
    row: Dataset | Checkpoint | Request | Job,
    to: str,
    expected: dict[str, Any],
    values: dict[str, Any],
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
