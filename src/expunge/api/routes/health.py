"""Is the process up, and can it do its work? Answers without a key and never says why in detail."""

from collections.abc import Callable
from typing import Literal

import structlog
from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy import Engine, text

from expunge.api.service import CurrentService
from expunge.registry.migration import is_current

router = APIRouter(tags=["service"])

log = structlog.get_logger(__name__)


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether calls can be served, and what each dependency says."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


@router.get("/healthz", summary="Is the process up?")
def show_health() -> Health:
    """Says nothing of database or object store: restarting this process would not help them."""
    return Health()


@router.get(
    "/readyz",
    summary="Can it serve calls?",
    responses={503: {"model": Readiness, "description": "At least one check failed."}},
)
def show_readiness(service: CurrentService, response: Response) -> Readiness:
    """Database, its schema's revision and the object store, each tried now."""
    checks = {
        "database": _outcome("database", lambda: _ping(service.engine)),
        "migrations": _outcome("migrations", lambda: _require_current(service.engine)),
        "objects": _outcome("objects", service.store.check),
    }
    ready = all(outcome == "ok" for outcome in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks=checks)


def _outcome(name: str, check: Callable[[], None]) -> str:
    try:
        check()
    # Whatever goes wrong with a dependency means one thing here: not ready.
    except Exception as error:
        log.warning("not-ready", check=name, error=repr(error))
        return "failed"
    return "ok"


def _ping(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def _require_current(engine: Engine) -> None:
    if not is_current(engine):
        raise RuntimeError("the schema is not at the newest revision")
