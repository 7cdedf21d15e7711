"""Audits: what became of the caller's own samples, as numbers, tables and heat maps."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import Select
from sqlalchemy.orm import joinedload, lazyload
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import OwnerOrAuditor
from expunge.api.bodies import JsonRoute
from expunge.api.downloads import CACHE_CONTROL
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import audits as schemas
from expunge.api.schemas.values import FINAL_WORK_STATES, AuditPath, IdempotencyKey
from expunge.api.service import CurrentService, Service
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.registry import asking, audits, visibility
from expunge.registry.access import Budget
from expunge.registry.errors import NotFound
from expunge.registry.tables import Audit, Checkpoint, Party

if TYPE_CHECKING:
    from expunge.evidence.pictures.bundle import Bundle

Suffix = Literal["png", "svg", "csv", "npy"]
Drawing = Literal[schemas.Which, "triptych", "scores"]
PICTURES = ("triptych", "scores")
"""What is no matrix: neither a table nor an array."""
MEDIA_TYPES: dict[Suffix, str] = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "csv": "text/csv; charset=utf-8",
    "npy": "application/octet-stream",
}
PAGE_HEADERS = {
    "Cache-Control": CACHE_CONTROL,
    # The page draws everything itself; nothing in it may run or call out.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
}

router = APIRouter(tags=["audits"], route_class=JsonRoute)


@router.post(
    "/audit",
    status_code=202,
    summary="Audit a request",
    responses=when_waited(schemas.Audit) | documented(403, 404, 409, 429),
)
async def create_audit(
    *,
    body: schemas.NewAudit,
    party: OwnerOrAuditor,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Audit:
    """Compare the model before and after on your own samples, beside samples that it kept and never saw.

    Same seed and views before and after. `Prefer: wait=N` answers 200 with the final report.
    """
    audit_id, job_id = await run_in_threadpool(_create, service, party, body, idempotency_key)
    read = partial(_read, service, party, audit_id)
    with service.endings.of(job_id) as ended:
        # Not within the transaction that creates it: a worker can begin meanwhile.
        first = await run_in_threadpool(read)
        answer = await until_final(first, read, _is_done, wait, ended=ended)
    accepted(response, f"/audits/{audit_id}", final=_is_done(answer), waited=wait)
    return answer


def _create(
    service: Service, party: Party, body: schemas.NewAudit, key: str | None
) -> tuple[str, str]:
    """Ids of the audit and of its job."""
    asked = body.asked()
    asking.require_known_keys(service.sessions, service.indexes, party, asked, key)
    with service.sessions.begin() as session:
        row = audits.create(
            session, party, asked, budget=Budget.of(service.settings), idempotency_key=key
        )
        return row.id, row.job_id


def _is_done(audit: schemas.Audit) -> bool:
    return audit.state in FINAL_WORK_STATES


def _read(service: Service, party: Party, audit_id: str) -> schemas.Audit:
    with service.readings() as session:
        return schemas.Audit.of(visibility.one(session, _readable(party), audit_id))


def _readable(party: Party) -> Select[Audit]:
    sides = [
        joinedload(side).options(lazyload(Checkpoint.datasets))
        for side in (Audit.before, Audit.after)
    ]
    return visibility.audits(party).options(*sides)


@router.get("/audits", summary="List audits", responses=documented(403))
def list_audits(
    party: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Audit]:
    """Audits of your requests, and those that you asked for as an auditor, newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, _readable(party), page)
        items = [schemas.Audit.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/audits/{audit_id}", summary="Show an audit", responses=documented(403, 404))
def show_audit(
    audit_id: AuditPath, party: OwnerOrAuditor, service: CurrentService
) -> schemas.Audit:
    """The report once it is there: scores with intervals, the test, its power, and the verdict."""
    return _read(service, party, audit_id)


@router.get(
    "/audits/{audit_id}/report.html",
    summary="Download the report as a page",
    response_class=Response,
    responses={
        200: {
            "description": "One HTML page with everything in it.",
            "content": {"text/html": {"schema": {"type": "string"}}},
        },
        **documented(403, 404),
    },
)
def download_report(
    audit_id: AuditPath, party: OwnerOrAuditor, service: CurrentService
) -> Response:
    """Verdict, pictures, numbers and how to check them, for reading and printing."""
    row, bundle_key = _finished(service, party, audit_id)
    with service.sessions() as session:
        request = visibility.one(session, visibility.requests(party), row.request_id)
    audit = schemas.Audit.of(row).model_dump(mode="json")
    told = {"id": request.id, "model_id": request.model_id, "method": request.method}

    def draw(bundle: "Bundle") -> bytes:
        from expunge.evidence.pictures.report import report_html  # noqa: PLC0415 - see Drawings

        return report_html(audit["report"], bundle, audit=audit, request=told)

    page = service.drawings.get((audit_id, "report.html"), bundle_key, draw)
    return Response(page, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


@router.get(
    "/audits/{audit_id}/{which}.{suffix}",
    summary="Download a matrix",
    response_class=Response,
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
    which: Drawing,
    suffix: Suffix,
    party: OwnerOrAuditor,
    service: CurrentService,
    level: schemas.Level = "encoder",
) -> Response:
    """Alignment matrix `before` or `after`, or their `gap`, of one kind of outputs.

    As picture, table or array; `triptych` is the picture of all three, `scores` that of the
    forgetting scores, image by image.
    """
    row, bundle_key = _finished(service, party, audit_id)
    report = row.report or {}
    if level not in report["levels"] or (which in PICTURES and suffix not in ("png", "svg")):
        raise NotFound(f"Audit {audit_id} has no {level} {which}.{suffix}.")
    draw = partial(_drawn, which, suffix, level, report)
    data = service.drawings.get((audit_id, level, which, suffix), bundle_key, draw)
    headers = {"Cache-Control": CACHE_CONTROL}
    return Response(data, media_type=MEDIA_TYPES[suffix], headers=headers)


def _finished(service: Service, party: Party, audit_id: str) -> tuple[Audit, str]:
    with service.sessions() as session:
        row = visibility.one(session, _readable(party), audit_id)
    key = audits.bundle_key(row)
    if key is None:
        raise NotFound(
            f"Audit {audit_id} has no pictures yet."
            if row.report is None
            else f"The pictures of audit {audit_id} were deleted with a data set of its request."
        )
    return row, key


def _drawn(
    which: Drawing, suffix: Suffix, level: str, report: Mapping[str, Any], bundle: "Bundle"
) -> bytes:
    # Imported here: see Drawings.
    from expunge.evidence.pictures import heat_maps, tables  # noqa: PLC0415
    from expunge.evidence.pictures.score_chart import score_chart  # noqa: PLC0415

    if suffix == "csv":
        return tables.matrix_csv(bundle.matrices[level][which], bundle.keys)
    if suffix == "npy":
        return tables.matrix_npy(bundle.matrices[level][which])
    if which == "scores":
        return score_chart(report, bundle, level, form=suffix)
    sentence = report["verdict"]["sentence"]
    if which == "triptych":
        return heat_maps.triptych(bundle, level, sentence=sentence, form=suffix)
    return heat_maps.heat_map(bundle, which, level, sentence=sentence, form=suffix)
