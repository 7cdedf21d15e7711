"""JSON bodies are small and flat: a larger or deeper one is refused before it fills memory or stack."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Message

MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 32
"""Of lists and objects in each other; what the service takes has at most six."""

_QUOTE = re.compile(rb'(?<!\\)(?:\\\\)*"')
_BRACKET = re.compile(rb"[\[\]{}]")


class _JsonRequest(Request):
    """A request whose body is no deeper than MAX_JSON_DEPTH."""

    async def json(self) -> Any:
        """The body's content, once it is known not to be too deep."""
        body = await self.body()
        # Most have fewer brackets than levels are allowed: these need no look at their shape.
        if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH and _depth(body) > MAX_JSON_DEPTH:
            raise HTTPException(422, f"At most {MAX_JSON_DEPTH} levels of JSON are accepted.")
        try:
            return await super().json()
        except json.JSONDecodeError:
            raise
        # Bytes that are no text, integers of thousands of digits, depth hidden in UTF-16: FastAPI
        # would answer them with a status of its own.
        except (ValueError, RecursionError) as error:
            raise json.JSONDecodeError("not JSON", "", 0) from error


def _depth(body: bytes) -> int:
    """How deep lists and objects of a JSON text are in each other, brackets in its strings aside."""
    depth = deepest = 0
    for number, part in enumerate(_QUOTE.split(body)):
        # Every other part is the inside of a string.
        if number % 2:
            continue
        for bracket in _BRACKET.findall(part):
            depth += 1 if bracket in b"[{" else -1
            deepest = max(deepest, depth)
    return deepest


class JsonRoute(APIRoute):
    """A route whose body is at most MAX_JSON_BYTES long and MAX_JSON_DEPTH deep."""

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

            return await handler(_JsonRequest(request.scope, receive))

        return limited
