"""JSON bodies are small: a larger one is refused before it fills the memory."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Message

MAX_JSON_BYTES = 2**20


class JsonRoute(APIRoute):
    """A route whose body is at most MAX_JSON_BYTES long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler behind a counter of received bytes."""
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            received = 0

            async def receive() -> Message:
                nonlocal received
                message = await request.receive()
                received += len(message.get("body", b""))
                if received > MAX_JSON_BYTES:
                    raise HTTPException(413, f"At most {MAX_JSON_BYTES:,} bytes are accepted.")
                return message

            return await handler(Request(request.scope, receive))

        return limited
