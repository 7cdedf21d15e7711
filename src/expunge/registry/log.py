"""The append-only log: what happened, written in the same transaction as the thing itself. Never updated."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.evidence.canonical import canonical
from expunge.evidence.chain import Row, moment
from expunge.registry.tables import LogRow

SERVICE = "service"
"""Actor of what no party asked for: sweeps, batching, workers."""
BACKUP = "backup"
"""Subject of backups and restores."""
TAKEN = "taken"
RESTORED = "restored"
"""Events of backups."""


def append(session: Session, actor: str, subject_id: str, event: str, **detail: Any) -> None:
    """Add one row; it exists exactly if the surrounding transaction commits.

    Raises:
        NotCanonical: the detail cannot be sealed, for example a number that is not finite.
    """
    append_each(session, actor, [subject_id], event, **detail)


def append_each(
    session: Session, actor: str, subject_ids: Iterable[str], event: str, **detail: Any
) -> None:
    """As `append`, one row about each subject."""
    canonical(detail)
    session.add_all(
        LogRow(actor=actor, subject_id=each, event=event, detail=detail) for each in subject_ids
    )


def entries(session: Session, subject_id: str, *, start: int, limit: int) -> list[LogRow]:
    """Rows about one subject in the order in which they were written, from number `start` (0 is the first) on."""
    about = select(LogRow).where(LogRow.subject_id == subject_id).order_by(LogRow.seq)
    return list(session.scalars(about.offset(start).limit(limit)))


def as_evidence(row: LogRow) -> Row:
    """The row as it is hashed."""
    return Row(
        seq=row.seq,
        at=moment(row.at),
        actor=row.actor,
        subject_id=row.subject_id,
        event=row.event,
        detail=row.detail,
        salt=str(row.salt),
    )
