"""Every error as an RFC 9457 problem, translated here once. Never shows internals; what nobody foresaw is logged."""

import errno
import json
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from psycopg.errors import UniqueViolation
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from expunge.registry.errors import DomainError
from expunge.registry.objects import StoreUnavailable

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:expunge:problem:"
RETRY_AFTER_SECONDS = "1"

HTTP_PROBLEMS = {
    400: ("bad-request", "Bad request"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    408: ("too-slow", "Too slow"),
    413: ("content-too-large", "Content too large"),
    422: ("invalid", "Invalid input"),
}
"""Names of what the framework refuses; Python's own phrases change between versions."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

DOMAIN_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    503: {"Retry-After": RETRY_AFTER_SECONDS},
}

MEANINGS = {
    400: "A header that the call needs is missing or malformed.",
    401: "The key is missing, unknown, expired or revoked.",
    403: "The key's role or scopes do not allow this call.",
    404: "It does not exist, or it belongs to another party.",
    408: "The body came too slowly.",
    409: "It is in a state in which the call makes no sense.",
    413: "The body is larger than the service accepts, or than what the party may still store.",
    422: "A value breaks a rule; `errors` says where and what is allowed.",
    429: "Too many calls in a minute or open at once, or the budget of the day is spent; `allowed` "
    "says what it is, `Retry-After` when to go on.",
    503: "For now a store is away, the disk has no room for an upload, or the service cannot sign; try "
    "again after `Retry-After` seconds.",
}
"""What the description says of each status."""

BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern", "expected", "multiple_of")
"""What pydantic's error context says of a bound."""
MAX_ERRORS = 100
"""That one answer names: a small body may hold tens of thousands."""
RAISED = "Value error, "
"""What pydantic puts before the words of our own validators."""

log = structlog.get_logger(__name__)


class InputError(BaseModel):
    """One thing that is wrong with a request."""

    model_config = ConfigDict(extra="allow")

    pointer: str = Field(description="JSON pointer into the body, or the name of the parameter.")
    message: str
    allowed: Any = Field(default=None, description="Bounds or values that are allowed.")


class Problem(BaseModel):
    """Why a call was refused (RFC 9457). `type` is stable; `detail` is for people."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": f"{TYPE_PREFIX}unknown-method",
                    "title": "Unknown method",
                    "status": 422,
                    "detail": "unknown method 'forget'; known: alignment_calibration, fine_tune",
                    "allowed": ["alignment_calibration", "fine_tune"],
                }
            ]
        },
    )

    type: str = Field(description="`urn:expunge:problem:` and a stable name.")
    title: str
    status: int
    detail: str
    errors: list[InputError] | None = None


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with problems of these statuses."""
    return {
        status: {
            "description": MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


def problem(
    status: int,
    slug: str,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **extensions: Any,
) -> Response:
    """A problem response; ASCII-only JSON, since `detail` may quote what a caller sent."""
    content = {
        "type": TYPE_PREFIX + slug,
        "title": title,
        "status": status,
        "detail": detail,
        **extensions,
    }
    return Response(
        json.dumps(content, default=str), status, headers=headers, media_type=MEDIA_TYPE
    )


def unexpected(request_id: str) -> Response:
    """The answer to an error that nobody foresaw."""
    return problem(
        500,
        "internal",
        "Internal error",
        f"The service failed; its log says more under request {request_id}.",
        request_id=request_id,
    )


def install(app: FastAPI) -> None:
    """Register the handlers on the app."""
    app.exception_handler(DomainError)(_domain)
    app.exception_handler(RequestValidationError)(_validation)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(IntegrityError)(_integrity)
    app.exception_handler(OperationalError)(_unavailable)
    app.exception_handler(PoolTimeout)(_unavailable)
    app.exception_handler(StoreUnavailable)(_store_unavailable)
    app.exception_handler(OSError)(_operating_system)


def _domain(_: Request, error: DomainError) -> Response:
    headers = dict(DOMAIN_HEADERS.get(error.status, {}))
    if (seconds := error.extensions.get("retry_after_seconds")) is not None:
        headers["Retry-After"] = str(seconds)
    return problem(
        error.status, error.slug, error.title, error.detail, headers=headers, **error.extensions
    )


def _validation(_: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    if any(each["loc"][0] == "path" for each in found):
        return problem(404, "not-found", "Not found", "There is no such resource.")
    errors = [_input_error(each) for each in found[:MAX_ERRORS]]
    return problem(
        422,
        "invalid",
        "Invalid input",
        "; ".join(f"{each['pointer'] or 'body'}: {each['message']}" for each in errors),
        errors=errors,
    )


def _input_error(error: Any) -> dict[str, Any]:
    place, *rest = error["loc"]
    if error["type"] == "json_invalid":
        return {"in": "body", "pointer": "", "message": "the body is not JSON"}
    pointer = "".join(f"/{part}" for part in rest) if place == "body" else ".".join(map(str, rest))
    found = {"in": place, "pointer": pointer, "message": error["msg"].removeprefix(RAISED)}
    bounds = {name: value for name, value in (error.get("ctx") or {}).items() if name in BOUNDS}
    return found | ({"allowed": bounds} if bounds else {})


def _http(_: Request, error: HTTPException) -> Response:
    slug, title = HTTP_PROBLEMS.get(error.status_code, ("http", "Call refused"))
    return problem(error.status_code, slug, title, str(error.detail), headers=error.headers)


def _integrity(_: Request, error: IntegrityError) -> Response:
    if not isinstance(error.orig, UniqueViolation):
        raise error
    return problem(
        409,
        "conflict",
        "Conflict with the current state",
        "Another call made the same thing at the same moment.",
    )


def _unavailable(_: Request, error: Exception) -> Response:
    log.error("database-unavailable", error=type(error).__name__, exc_info=error)
    return _try_again("The service's database does not answer; try again.")


def _store_unavailable(_: Request, error: StoreUnavailable) -> Response:
    log.error("store-unavailable", error=str(error))
    return _try_again("The service's object store does not answer; try again.")


def _operating_system(_: Request, error: OSError) -> Response:
    """A full disk passes, like a store that is away; of anything else nothing was foreseen."""
    if error.errno not in NO_SPACE:
        raise error
    log.error("disk-full", error=str(error))
    return _try_again("The service's disk is full; try again.")


def _try_again(detail: str) -> Response:
    headers = DOMAIN_HEADERS[503]
    return problem(503, "unavailable", "Temporarily unavailable", detail, headers=headers)
