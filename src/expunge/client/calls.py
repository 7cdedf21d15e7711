"""The shapes that calls of the service come in: one answer, creations, pages, long work, event streams."""

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from expunge.client.events import ServerEvent
from expunge.client.problems import UnfinishedError
from expunge.client.resources import End, Event, Progress, StateChange
from expunge.client.transport import Body, Transport

# The longest the service keeps one answer back (`Prefer: wait`).
PREFER_WAIT_SECONDS = 60
POLL_FIRST_SECONDS = 0.1
POLL_MAX_SECONDS = 2.0
PAGE_LIMIT = 200

T = TypeVar("T")


class Stateful(Protocol):
    """A resource with a life."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> str: ...


S = TypeVar("S", bound=Stateful)


class Calls:
    """Base of each group of calls."""

    def __init__(self, transport: Transport, max_wait: float) -> None:
        self._transport = transport
        self._max_wait = max_wait


def get(transport: Transport, path: str, params: Mapping[str, Any] | None = None) -> Any:
    """The JSON answer of a GET, retried over lost connections."""
    return transport.send("GET", path, params=params, repeatable=True).json()


def post(
    transport: Transport,
    path: str,
    body: Mapping[str, Any],
    *,
    repeatable: bool = False,
    wait: bool = False,
) -> Any:
    """The JSON answer of a POST, sent once unless `repeatable`; with `wait` the service may answer late."""
    return transport.send(
        "POST",
        path,
        Body(json=dict(body)),
        headers=prefer(wait),
        repeatable=repeatable,
        wait=extra_seconds(wait),
    ).json()


def create(
    transport: Transport,
    path: str,
    body: Body,
    idempotency_key: str | None,
    *,
    params: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    wait: bool = False,
    seconds: float = 0.0,
) -> Any:
    """The JSON answer of a POST that makes something; retries carry one Idempotency-Key, so it is made once.

    `seconds`: how much longer than usual the service may work before it answers.
    """
    key = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    return transport.send(
        "POST",
        path,
        body,
        params=params,
        headers={**key, **prefer(wait), **(headers or {})},
        repeatable=True,
        wait=extra_seconds(wait) + seconds,
    ).json()


def prefer(wait: bool) -> dict[str, str]:
    """The header that asks the service to wait for the work to be done."""
    return {"Prefer": f"wait={PREFER_WAIT_SECONDS}"} if wait else {}


def extra_seconds(wait: bool) -> float:
    """How much longer than usual the answer may take."""
    return float(PREFER_WAIT_SECONDS) if wait else 0.0


def pages(
    transport: Transport,
    path: str,
    parse: Callable[[Any], T],
    params: Mapping[str, Any] | None = None,
) -> Iterator[T]:
    """All items of a paginated list, page after page as they are asked for."""
    wanted: dict[str, Any] = {"limit": PAGE_LIMIT, **(params or {})}
    while True:
        page = get(transport, path, wanted)
        yield from map(parse, page["items"])
        if page["next_cursor"] is None:
            return
        wanted["cursor"] = page["next_cursor"]


def until_final(first: S, fetch: Callable[[], S], final: Collection[str], max_wait: float) -> S:
    """Fetch a resource until its state is final, at most `max_wait` seconds.

    Raises:
        UnfinishedError: it is not final by then.
    """
    current, pause = first, POLL_FIRST_SECONDS
    deadline = time.monotonic() + max_wait
    while current.state not in final:
        if time.monotonic() > deadline:
            raise UnfinishedError(f"{first.id} is still {current.state} after {max_wait:.0f} s")
        time.sleep(pause)
        pause = min(POLL_MAX_SECONDS, pause * 1.5)
        current = fetch()
    return current


def events(transport: Transport, path: str) -> Iterator[Event]:
    """The events of a request or job until the last one; kinds that are not known are left out."""
    for event in transport.events(path):
        parsed = parse_event(event)
        if parsed is not None:
            yield parsed


def parse_event(event: ServerEvent) -> Event | None:
    """The event as a typed object, None for a kind that a newer service may send."""
    match event.name:
        case "state":
            return StateChange.model_validate_json(event.data)
        case "progress":
            return Progress.model_validate_json(event.data)
        case "end":
            return End.model_validate_json(event.data)
        case _:
            return None
