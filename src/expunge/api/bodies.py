"""JSON bodies are small and flat, and read of known callers only.

A larger or deeper one is refused before it fills memory or stack.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Message

from expunge.api.auth import caller_of

MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 32
"""Of lists and objects in each other; what the service takes has at most six."""

_TOO_DEEP = f"At most {MAX_JSON_DEPTH} levels of JSON are accepted."


class _JsonRequest(Request):
    """A request whose body is no deeper than MAX_JSON_DEPTH."""

    async def json(self) -> Any:
        """The body's content, once it is known not to be too deep."""
        body = await self.body()
        try:
            content = await super().json()
        except json.JSONDecodeError:
            raise
        except RecursionError as error:
            raise HTTPException(422, _TOO_DEEP) from error
        # Bytes that are no text, integers of thousands of digits: FastAPI would answer them with a
        # status of its own.
        except ValueError as error:
            raise json.JSONDecodeError("not JSON", "", 0) from error
        # Most have fewer brackets than levels are allowed: these need no look at their shape.
        if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH and _is_deep(content):
            raise HTTPException(422, _TOO_DEEP)
        return content


def _is_deep(content: Any) -> bool:
    """Whether lists and objects are in each other more than MAX_JSON_DEPTH times.

    Level by level: a megabyte of brackets must cost little, and no stack.
    """
    level = [content]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


class JsonRoute(APIRoute):
    """A route for callers with a key, whose body is at most MAX_JSON_BYTES long and MAX_JSON_DEPTH deep."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The route's handler, behind the look at the key and a counter of received bytes.

        FastAPI itself reads a body before it asks any dependency.
        """
        handler = super().get_route_handler()

        async def limited(request: Request) -> Response:
            await caller_of(request)
            received = 0

            async def receive() -> Message:
                nonlocal received
                message = await request.receive()
                received += len(message.get("body", b""))
                if received > MAX_JSON_BYTES:
                    raise HTTPException(413, f"At most {MAX_JSON_BYTES:,} bytes are accepted.")
                return message

            return await handler(_JsonRequest(request.scope, receive))

        return limited
