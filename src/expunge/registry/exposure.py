"""The end of a request's exposure: from then on a head is in force that holds none of its data."""

from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from expunge.registry import log
from expunge.registry.lifecycles import RequestState
from expunge.registry.tables import CheckpointDataset, Request, RequestDataset


def still_held(checkpoint_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether the checkpoint holds data of the `Request` of the surrounding statement, and has not forgotten it."""
    return (
        select(RequestDataset.request_id)
        .join(CheckpointDataset, CheckpointDataset.dataset_id == RequestDataset.dataset_id)
        .where(
            RequestDataset.request_id == Request.id,
            CheckpointDataset.checkpoint_id == checkpoint_id,
            ~CheckpointDataset.forgotten,
        )
        .exists()
    )


def end(session: Session, model_id: str, head_id: str, *, actor: str) -> None:
    """Note it for the completed requests to a model whose data its head has forgotten or never held."""
    ended: Any = session.scalars(
        update(Request)
        .where(
            Request.model_id == model_id,
            Request.state == RequestState.COMPLETED,
            Request.effective_at.is_(None),
            ~still_held(head_id),
        )
        .values(effective_at=func.now())
        .returning(Request.id)
        .execution_options(synchronize_session=False)
    ).all()
    for request_id in sorted(ended):
        log.append(session, actor, request_id, "in-force", checkpoint_id=head_id)
