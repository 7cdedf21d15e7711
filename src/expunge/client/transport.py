"""One HTTP session with the service: keys, bounded retries, problems as exceptions, event streams.

Knows nothing of the service's resources.
"""

import base64
import hashlib
import ipaddress
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from expunge.client.events import ServerEvent, read_events
from expunge.client.problems import UnreachableError, problem_of

RETRIES = 4
RETRY_BASE_SECONDS = 0.25
RETRY_MAX_SECONDS = 4.0
# Answers of a proxy whose service is restarting, or of the service while a store is away.
RETRIED_STATUSES = frozenset({502, 503, 504})
# Of a store that asks to try again, besides those.
STORE_RETRIED_STATUSES = RETRIED_STATUSES | {500}
CONNECT_TIMEOUT_SECONDS = 10.0
# Of a file's body at once.
SENT_BYTES = 2**18
# The service sends a comment line well within this time when nothing happens.
EVENT_SILENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Body:
    """A request body: JSON, or a file or `size` bytes of it from byte `start` on, read anew for every attempt."""

    json: Any = None
    file: Path | None = None
    start: int = 0
    size: int | None = None

    def content(self) -> Iterator[bytes] | None:
        """The bytes, a bit at a time, if the body is of a file."""
        return None if self.file is None else self._read(self.file)

    def headers(self) -> dict[str, str]:
        """What says how long the content is."""
        return {} if self.file is None else {"Content-Length": str(self._bytes(self.file))}

    def _bytes(self, file: Path) -> int:
        return file.stat().st_size - self.start if self.size is None else self.size

    def _read(self, file: Path) -> Iterator[bytes]:
        left = self._bytes(file)
        with file.open("rb") as opened:
            opened.seek(self.start)
            while left and (data := opened.read(min(SENT_BYTES, left))):
                left -= len(data)
                yield data


NO_BODY = Body()


class Transport:
    """Sends requests to one base address with one key."""

    def __init__(self, base_url: str, key: str | None, timeout: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT_SECONDS),
            # A proxy from the environment cannot reach this machine's own loopback address.
            trust_env=not _is_loopback(httpx.URL(self.base_url).host),
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        body: Body = NO_BODY,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
        wait: float = 0.0,
    ) -> httpx.Response:
        """Send one request and return its successful answer.

        Args:
            repeatable: the call may safely reach the service twice, so it is retried.
            wait: seconds that the service may keep the answer back, beyond the usual timeout.

        Raises:
            ProblemError: the service refused.
            UnreachableError: no answer came.
        """

        def attempt() -> httpx.Response:
            return self._http.request(
                method,
                path,
                json=body.json,
                content=body.content(),
                params=params,
                headers={**body.headers(), **(headers or {})},
                timeout=httpx.Timeout(self._timeout + wait, connect=CONNECT_TIMEOUT_SECONDS),
            )

        response = self._retried(attempt, repeatable=repeatable)
        if response.is_error:
            raise problem_of(
                response.status_code, response.headers.get("content-type", ""), response.content
            )
        return response

    def send_elsewhere(self, url: str, body: Body, headers: Mapping[str, str]) -> None:
        """PUT a file or a part of one to an address that the service gave, without the key.

        Raises:
            ProblemError: whoever is there refused.
            UnreachableError: no answer came.
        """
        place = httpx.URL(url).host

        def attempt() -> httpx.Response:
            return httpx.put(
                url,
                content=body.content(),
                headers={**body.headers(), **headers},
                timeout=httpx.Timeout(self._timeout, connect=CONNECT_TIMEOUT_SECONDS),
                trust_env=not _is_loopback(place),
            )

        try:
            response = self._retried(attempt, repeatable=True, asking=STORE_RETRIED_STATUSES)
        except UnreachableError as error:
            cause = error.__cause__
            raise UnreachableError(
                f"No answer from the object store at {place} ({cause}); is it reachable from here?"
            ) from cause
        _raise_for(response)

    @contextmanager
    def answer(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A successful answer to one GET, its body unread; or one of RETRIED_STATUSES.

        Raises:
            ProblemError: the service refused.
            httpx.TransportError: the connection broke, also while the body is read.
        """
        with self._http.stream("GET", path, headers=dict(headers)) as response:
            if response.status_code not in RETRIED_STATUSES:
                _raise_for(response)
            yield response

    def try_again(self, failures: int, cause: object) -> None:
        """Wait before the next attempt, or raise UnreachableError after too many `failures` in a row."""
        if failures > RETRIES:
            raise self._unreachable(cause)
        time.sleep(_pause(failures))

    def events(self, path: str) -> Iterator[ServerEvent]:
        """The server-sent events of `path`, resumed after a lost connection where they broke off.

        Ends with the event named `end`. Raises as `send` does; `UnreachableError` after several
        attempts in a row that brought no event.
        """
        last_id: str | None = None
        failures = 0
        while True:
            cause: Exception | None = None
            try:
                for event in self._stream_once(path, last_id):
                    last_id = event.id or last_id
                    failures = 0
                    yield event
                    if event.name == "end":
                        return
            except httpx.TransportError as error:
                cause = error
            failures += 1
            if failures > RETRIES:
                reason = cause or "the event stream ends without an end event"
                raise self._unreachable(reason) from cause
            time.sleep(_pause(failures))

    def _stream_once(self, path: str, last_id: str | None) -> Iterator[ServerEvent]:
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        timeout = httpx.Timeout(EVENT_SILENCE_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code in RETRIED_STATUSES:
                return
            _raise_for(response)
            yield from read_events(response.iter_lines())

    def _retried(
        self,
        attempt: Callable[[], httpx.Response],
        *,
        repeatable: bool,
        asking: Collection[int] = RETRIED_STATUSES,
    ) -> httpx.Response:
        failures = 0
        while True:
            try:
                response = attempt()
            except httpx.TransportError as error:
                # A connection that was never made carried no request: always safe to repeat.
                safe = repeatable or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                failures += 1
                if not safe or failures > RETRIES:
                    raise self._unreachable(error) from error
            else:
                failures += 1
                retried = repeatable and response.status_code in asking
                if not retried or failures > RETRIES:
                    return response
            time.sleep(_pause(failures))

    def _unreachable(self, cause: object) -> UnreachableError:
        what = str(cause) or type(cause).__name__
        return UnreachableError(
            f"No answer from the service at {self.base_url} ({what}). "
            "Is it running, and is the address right?"
        )


def content_digest(path: Path) -> str:
    """The `Content-Digest` header of a file (RFC 9530, SHA-256)."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha-256=:{base64.b64encode(digest).decode()}:"


def _raise_for(response: httpx.Response) -> None:
    if response.is_error:
        body = response.read()
        raise problem_of(response.status_code, response.headers.get("content-type", ""), body)


def _pause(failures: int) -> float:
    """Seconds before the next attempt: doubling, bounded, with full jitter."""
    limit = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2 ** (failures - 1))
    return random.uniform(limit / 2, limit)  # noqa: S311 -- spreads attempts, protects nothing


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
