"""Audits: what became of the caller's own samples, as numbers, tables and heat maps."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Select
from sqlalchemy.orm import joinedload
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import Owner
from expunge.api.bodies import JsonRoute
from expunge.api.downloads import stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import audits as schemas
from expunge.api.schemas.values import FINAL_WORK_STATES, AuditPath, IdempotencyKey
from expunge.api.service import CurrentService, Service
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.registry import audits, visibility
from expunge.registry.errors import NotFound
from expunge.registry.tables import Audit, Party

MEDIA_TYPES = {
    "png": "image/png",
    "csv": "text/csv; charset=utf-8",
    "npy": "application/octet-stream",
}

router = APIRouter(tags=["audits"], route_class=JsonRoute)


@router.post(
    "/audit",
    status_code=202,
    summary="Audit a request",
    responses=when_waited(schemas.Audit) | documented(403, 404, 409),
)
async def create_audit(
    *,
    body: schemas.NewAudit,
    owner: Owner,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Audit:
    """Compare the model before and after on your own samples and on its control images.

    Same seed and views before and after. `Prefer: wait=N` answers 200 with the final report.
    """
    first = await run_in_threadpool(_create, service, owner, body, idempotency_key)
    answer = await until_final(first, lambda: _read(service, owner, first.id), _is_done, wait)
    accepted(response, f"/audits/{first.id}", final=_is_done(answer), waited=wait)
    return answer


def _create(
    service: Service, owner: Party, body: schemas.NewAudit, key: str | None
) -> schemas.Audit:
    with service.sessions.begin() as session:
        row = audits.create(
            session,
            owner,
            request_id=body.request_id,
            dataset_ids=body.dataset_ids,
            settings=body.settings(),
            idempotency_key=key,
        )
        session.refresh(row)
        return schemas.Audit.of(row)


def _is_done(audit: schemas.Audit) -> bool:
    return audit.state in FINAL_WORK_STATES


def _read(service: Service, owner: Party, audit_id: str) -> schemas.Audit:
    with service.sessions() as session:
        return schemas.Audit.of(visibility.one(session, _readable(owner), audit_id))


def _readable(party: Party) -> Select[Audit]:
    return visibility.audits(party).options(joinedload(Audit.before), joinedload(Audit.after))


@router.get("/audits", summary="List audits", responses=documented(403))
def list_audits(owner: Owner, service: CurrentService, page: Paging) -> Page[schemas.Audit]:
    """Your audits, newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, _readable(owner), page)
        items = [schemas.Audit.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/audits/{audit_id}", summary="Show an audit", responses=documented(403, 404))
def show_audit(audit_id: AuditPath, owner: Owner, service: CurrentService) -> schemas.Audit:
    """The report once it is there: scores with intervals, control, contrast and verdict."""
    return _read(service, owner, audit_id)


@router.get(
    "/audits/{audit_id}/{which}.{suffix}",
    summary="Download a matrix",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Heat map, table, or float32 array.",
            "content": {
                media_type: {"schema": {"type": "string", "format": "binary"}}
                for media_type in MEDIA_TYPES.values()
            },
        },
        **documented(403, 404),
    },
)
def download_matrix(
    *,
    audit_id: AuditPath,
    which: schemas.Which,
    suffix: Literal["png", "csv", "npy"],
    owner: Owner,
    service: CurrentService,
    level: schemas.Level = "encoder",
) -> Response:
    """Alignment matrix `before` or `after`, or their `gap`, of encoder features or projections."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.audits(owner), audit_id)
    try:
        key = (row.objects or {})[level][which][suffix]
    except KeyError:
        raise NotFound(f"Audit {audit_id} has no {level} {which}.{suffix} (yet).") from None
    return stream_object(service.store, key, MEDIA_TYPES[suffix])
