"""The append-only log: what happened, written in the same transaction as the thing itself. Never updated."""

from typing import Any

from sqlalchemy.orm import Session

from expunge.registry.tables import LogRow

SERVICE = "service"
"""Actor of what no party asked for: sweeps, batching, workers."""


def append(session: Session, actor: str, subject_id: str, event: str, **detail: Any) -> None:
    """Add one row; it exists exactly if the surrounding transaction commits."""
    session.add(LogRow(actor=actor, subject_id=subject_id, event=event, detail=detail))
