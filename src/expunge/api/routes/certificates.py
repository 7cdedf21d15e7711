"""Erasure certificates: papers that prove a removal to whoever has the service's public key, offline."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from expunge.api.auth import OwnerOrAuditor
from expunge.api.bodies import JsonRoute
from expunge.api.problems import documented
from expunge.api.schemas import certificates as schemas
from expunge.api.schemas.values import IdempotencyKey, RequestPath
from expunge.api.service import CurrentService
from expunge.evidence.canonical import canonical
from expunge.registry import certificates, tables

router = APIRouter(tags=["certificates"], route_class=JsonRoute)

Edition = Annotated[int | None, Query(ge=1, lt=2**31, description="By default the newest.")]


@router.get(
    "/requests/{request_id}/certificate",
    summary="Get a request's certificate",
    response_model=schemas.Certificate,
    responses=documented(403, 404, 409),
)
def get_certificate(
    request_id: RequestPath, party: OwnerOrAuditor, service: CurrentService, edition: Edition = None
) -> Response:
    """For the request's owner, an auditor of all its data, and its model's owner.

    The first edition is written when it is first asked for. 409 until the request is completed, and
    for some seconds after that until the log is sealed (`Retry-After`). 503 where the service has no
    signing key.
    """
    with service.sessions.begin() as session:
        row = certificates.certificate(
            session, service.settings, party, request_id, edition=edition
        )
    return _file(row, 200)


@router.post(
    "/requests/{request_id}/certificate",
    status_code=201,
    summary="Write a further edition",
    response_model=schemas.Certificate,
    responses={
        200: {
            "model": schemas.Certificate,
            "description": "The newest, since nothing has changed.",
        },
        **documented(403, 404, 409),
    },
)
def renew_certificate(
    request_id: RequestPath,
    party: OwnerOrAuditor,
    service: CurrentService,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Certify what is the case now, for example once the base is destroyed. Earlier editions stay."""
    with service.sessions.begin() as session:
        row, is_new = certificates.renew(
            session, service.settings, party, request_id, idempotency_key=idempotency_key
        )
    return _file(row, 201 if is_new else 200)


def _file(row: tables.Certificate, status: int) -> Response:
    """The envelope in the one form that is verified byte by byte."""
    return Response(
        canonical(row.envelope),
        status,
        media_type="application/json",
        headers={
            "Content-Location": f"/requests/{row.request_id}/certificate?edition={row.edition}"
        },
    )
