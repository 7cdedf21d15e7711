"""Is the process up, and can it do its work? Answers without a key and never says why in detail."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from expunge.api.readiness import Outcome
from expunge.api.service import CurrentService

router = APIRouter(tags=["service"])


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether calls can be served, and what each check found; a warning alone takes nothing away."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Outcome]


@router.get("/healthz", summary="Is the process up?")
def show_health() -> Health:
    """Says nothing of database or object store: restarting this process would not help them."""
    return Health()


@router.get(
    "/readyz",
    summary="Can it serve calls?",
    responses={503: {"model": Readiness, "description": "At least one check failed."}},
)
async def show_readiness(service: CurrentService, response: Response) -> Readiness:
    """Database, its schema, object store, each tried within the last second; clock and disk, which only warn."""
    checks = await service.readiness.outcomes()
    ready = Outcome.FAILED not in checks.values()
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks=checks)
