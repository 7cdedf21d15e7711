"""Around every call: headers that keep browsers from harm, a limit on headers, an end to bodies that trickle.

Never looks into a body. What happens before a call is complete is `connections`' part.
"""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.api.problems import problem
from expunge.api.rates import Share

SHARE = "expunge.share"
"""Where `auth` leaves what is left of the caller's calls in the connection's scope."""
MAX_HEADERS = 100
CSP = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Answers are data: a page says itself what it needs."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
DEFAULTS = (
    (b"content-security-policy", CSP),
    (b"cache-control", b"no-store"),
)
"""Of answers that say nothing else."""
HSTS = (b"strict-transport-security", b"max-age=31536000")
"""A year; only where the call came by https, also if a proxy in front says so."""


class Hardening:
    """ASGI middleware.

    A body may pause for at most `stall_seconds` at once, and for as long altogether, plus the time
    that its bytes take at `bytes_per_second`. Only waiting for the caller counts.
    """

    def __init__(self, app: ASGIApp, *, stall_seconds: float, bytes_per_second: float) -> None:
        self._app = app
        self._stall_seconds = stall_seconds
        self._bytes_per_second = bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = completed(message.get("headers", ()), scope)
            await send(message)

        if len(scope["headers"]) > MAX_HEADERS:
            answer = problem(
                431, "too-many-headers", "Too many headers", f"At most {MAX_HEADERS} are accepted."
            )
            await answer(scope, receive, send_hardened)
            return
        await self._app(scope, self._patient(receive), send_hardened)

    def _patient(self, receive: Receive) -> Receive:
        """`receive`, as long as the body comes fast enough; what follows a body may take any time."""
        received, waited, complete = 0, 0.0, False

        async def patient() -> Message:
            nonlocal received, waited, complete
            if complete:
                return await receive()
            allowed = self._stall_seconds + received / self._bytes_per_second - waited
            clock = asyncio.get_running_loop().time
            started = clock()
            try:
                async with asyncio.timeout(max(0, min(allowed, self._stall_seconds))):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(
                    408, "The body comes too slowly.", {"Connection": "close"}
                ) from None
            waited += clock() - started
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        return patient


def completed(given: Any, scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, and those that protect whoever opens it in a browser."""
    headers = [*given, *HEADERS]
    names = {name.lower() for name, _ in given}
    headers += [each for each in DEFAULTS if each[0] not in names]
    if scope["scheme"] == "https":
        headers.append(HSTS)
    share: Share | None = scope.get(SHARE)
    return headers if share is None else headers + share.headers()
