"""A call lasts no longer than its key: uploads and downloads that go on are broken off once it has ended.

Event streams end by themselves. Knows nothing of what is called.
"""

import time

from fastapi.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.api.auth import CALLER, Caller
from expunge.api.service import Service
from expunge.api.tracing import BrokenOff
from expunge.registry import parties
from expunge.registry.errors import Unauthenticated


class Tenure:
    """ASGI middleware; most calls are over before it looks for the first time."""

    seconds = 5.0
    """Between two looks at the key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        looked = time.monotonic()

        async def has_ended() -> bool:
            nonlocal looked
            caller: Caller | None = scope.get(CALLER)
            now = time.monotonic()
            if caller is None or now - looked < self.seconds:
                return False
            looked = now
            return not await run_in_threadpool(_lives, scope["app"].state.service, caller.key.id)

        async def receive_while_live() -> Message:
            message = await receive()
            if message["type"] == "http.request" and await has_ended():
                raise Unauthenticated("The key has ended.")
            return message

        async def send_while_live(message: Message) -> None:
            if message.get("more_body") and await has_ended():
                raise BrokenOff("its key has ended")
            await send(message)

        await self._app(scope, receive_while_live, send_while_live)


def _lives(service: Service, key_id: str) -> bool:
    with service.readings() as session:
        return parties.is_live(session, key_id)
