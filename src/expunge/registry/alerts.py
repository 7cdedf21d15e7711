"""Alerts: what later heads give reason to warn of. Decides nothing: a review's test does."""

from typing import Any

from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from expunge.registry import log, visibility
from expunge.registry.errors import NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.tables import Alert, AlertKind, Audit, Model, Party


def relearned(session: Session, audit: Audit, detail: dict[str, Any]) -> None:
    """Warn that the audited head knows the samples of a past request again; once per request and head."""
    raised = session.scalar(
        insert(Alert)
        .values(
            id=new_id(Prefix.ALERT),
            request_id=audit.request_id,
            model_id=audit.after.model_id,
            checkpoint_id=audit.after_checkpoint_id,
            kind=AlertKind.RELEARNED,
            detail=detail,
        )
        .on_conflict_do_nothing()
        .returning(Alert.id)
    )
    if raised is not None:
        log.append(
            session,
            log.SERVICE,
            audit.request_id,
            AlertKind.RELEARNED,
            alert_id=raised,
            checkpoint_id=audit.after_checkpoint_id,
            **detail,
        )


def acknowledge(session: Session, model_owner: Party, alert_id: str) -> Alert:
    """Note that the model's owner has taken notice; doing so again changes nothing.

    Raises:
        NotFound: not an alert about an own model.
    """
    alert = session.get(Alert, alert_id, with_for_update=True)
    if alert is None or session.get_one(Model, alert.model_id).owner_id != model_owner.id:
        raise NotFound.of(visibility.KIND[Alert], alert_id)
    if alert.acknowledged_at is None:
        alert.acknowledged_at, alert.acknowledged_by = func.now(), model_owner.id
        log.append(session, model_owner.id, alert.request_id, "acknowledged", alert_id=alert.id)
        session.flush()
        session.refresh(alert)
    return alert
