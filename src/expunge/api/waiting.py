"""`Prefer: wait=N` (RFC 7240): hold the answer back until the work is done. Holds neither a thread nor a connection."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from expunge.api.auth import place

MAX_WAIT_SECONDS = 60
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 0.25
PAUSE_GROWTH = 1.4
RETRY_AFTER_SECONDS = "1"

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?:[,;]|$)", re.IGNORECASE)

T = TypeVar("T")


async def _wait_seconds(
    request: Request,
    prefer: Annotated[
        str | None,
        Header(description=f"`wait=N`: answer when it is done, after N ≤ {MAX_WAIT_SECONDS} s."),
    ] = None,
) -> AsyncIterator[int]:
    found = _WAIT.search(prefer or "")
    seconds = min(int(found.group(1)), MAX_WAIT_SECONDS) if found else 0
    if not seconds:
        yield 0
        return
    async with asynccontextmanager(place)(request):
        yield seconds


WaitSeconds = Annotated[int, Depends(_wait_seconds)]


def when_waited(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can be waited for."""
    return {200: {"model": model, "description": "It is done: `Prefer: wait` was long enough."}}


async def until_final(
    first: T,
    fetch: Callable[[], T],
    is_final: Callable[[T], bool],
    seconds: int,
    *,
    ended: asyncio.Event | None = None,
) -> T:
    """The newest representation, final if it becomes so within `seconds`.

    Looks again and again, ever more rarely; with `ended` (see `Endings`) once that is set, and
    else seldom, in case it was set for nobody.
    """
    deadline = time.monotonic() + seconds
    current, pause = first, FIRST_PAUSE_SECONDS
    while not is_final(current) and (left := deadline - time.monotonic()) > 0:
        if ended is None:
            await asyncio.sleep(min(pause, left))
            pause = min(LONGEST_PAUSE_SECONDS, pause * PAUSE_GROWTH)
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), min(pause, left))
            ended.clear()
            pause = LONGEST_PAUSE_SECONDS
        current = await run_in_threadpool(fetch)
    return current


def accepted(response: Response, location: str, *, final: bool = False, waited: int = 0) -> None:
    """Give the answer its status and headers: 200 if the work is done, else 202 and when to look again."""
    response.headers["Location"] = location
    if waited:
        response.headers["Preference-Applied"] = f"wait={waited}"
    if final:
        response.status_code = 200
    else:
        response.status_code = 202
        response.headers["Retry-After"] = RETRY_AFTER_SECONDS
