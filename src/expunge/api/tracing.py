"""Ids on answers and log lines, a span for every call, the last net for errors. Never logs bodies or queries."""

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.api.metering import known_method, route_of
from expunge.api.problems import unexpected
from expunge.registry import spans
from expunge.registry.spans import Span

HEADER = "X-Request-Id"
TRACEPARENT = "traceparent"
"""W3C Trace Context: whose trace the call belongs to."""
FIRST_SERVER_ERROR = 500
PARTY_ID = "expunge.party_id"
"""Where `auth` leaves the caller's id in the connection's scope for the log."""
ACCEPTED_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")
"""Ids of a proxy in front are kept if they look like one."""

log = structlog.get_logger(__name__)


class BrokenOff(Exception):
    """An answer is not sent to its end, on purpose; the message says why."""


class RequestTracing:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        request_id = given if ACCEPTED_ID.fullmatch(given) else uuid.uuid4().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with spans.call(known_method(scope), headers.get(TRACEPARENT, "")) as span:
            if span.trace_id:
                structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
            await self._serve(scope, receive, send, request_id, span)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, span: Span
    ) -> None:
        started = time.perf_counter()
        status = 0

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_traced)
        except ClientDisconnect:
            log.info("client-left", method=scope["method"], path=scope["path"])
        except BrokenOff as reason:
            # Without an end: uvicorn closes the connection, and the caller knows that more was to come.
            log.info("answer-broken-off", path=scope["path"], reason=str(reason))
        except Exception:
            log.exception("request-failed", method=scope["method"], path=scope["path"])
            if status:
                # Half an answer is out: breaking the connection is the only way to say so.
                raise
            await unexpected(request_id)(scope, receive, send_traced)
        finally:
            route = route_of(scope)
            span.describe(
                {
                    "http.route": route,
                    "http.response.status_code": status,
                    "expunge.request.id": request_id,
                },
                failed=status >= FIRST_SERVER_ERROR,
                name=f"{known_method(scope)} {route}",
            )
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                party_id=scope.get(PARTY_ID),
                milliseconds=round(1000 * (time.perf_counter() - started), 1),
            )
