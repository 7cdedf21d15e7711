"""The append-only log: what happened, written in the same transaction as the thing itself. Never updated."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry.tables import LogRow

SERVICE = "service"
"""Actor of what no party asked for: sweeps, batching, workers."""


def append(session: Session, actor: str, subject_id: str, event: str, **detail: Any) -> None:
    """Add one row; it exists exactly if the surrounding transaction commits."""
    session.add(LogRow(actor=actor, subject_id=subject_id, event=event, detail=detail))


def entries(session: Session, subject_id: str, *, start: int, limit: int) -> list[LogRow]:
    """Rows about one subject in the order in which they were written, from number `start` (0 is the first) on."""
    about = select(LogRow).where(LogRow.subject_id == subject_id).order_by(LogRow.seq)
    return list(session.scalars(about.offset(start).limit(limit)))
