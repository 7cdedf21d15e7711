"""What Prometheus scrapes: everybody's load, so that it is the operator's. A key, or a token for this alone."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST

from expunge.api import metering
from expunge.api.auth import bearer, caller_of
from expunge.api.problems import documented
from expunge.api.service import CurrentService
from expunge.registry.errors import Forbidden
from expunge.registry.tables import Role

router = APIRouter(tags=["service"])


async def scraper(
    request: Request,
    service: CurrentService,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> None:
    """Let in whoever has the token of the settings, or an operator's key.

    Raises:
        Unauthenticated: neither.
        Forbidden: the key of another role.
    """
    token = service.settings.metrics_token.get_secret_value().encode()
    if token and credentials is not None:
        given = credentials.credentials.encode()
        if secrets.compare_digest(given, token):
            return
    role = (await caller_of(request)).party.role
    if role != Role.OPERATOR:
        raise Forbidden(
            f"Metrics are for operator keys; yours is of a {role}.", allowed=[Role.OPERATOR.value]
        )


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(scraper)],
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus's text format; docs/reference/metrics.md explains each metric.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **documented(403),
    },
)
async def show_metrics(service: CurrentService) -> Response:
    """Calls to this process, the queue, requests, the record. For operators, or with EXPUNGE_METRICS_TOKEN."""
    await service.readiness.outcomes()
    told = await run_in_threadpool(metering.exposition, service.vitals, service.settings.work_dir)
    return Response(told, media_type=CONTENT_TYPE_LATEST)
