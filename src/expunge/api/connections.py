"""Connections that end: of callers who take for ever to say what they want, or to read what they asked for.

Uvicorn waits for both without end, and answers what is no HTTP in words of its own, which nothing
counts. Holds no thread meanwhile, and knows nothing of what is called.
"""

import asyncio
import resource
import sys
from http import HTTPStatus

import h11
import structlog
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from expunge.api import metering
from expunge.api.hardening import completed
from expunge.api.problems import problem

REFUSALS: dict[int, tuple[str, str, str]] = {
    HTTPStatus.BAD_REQUEST: ("bad-request", "Bad request", "This is no HTTP/1.1 request."),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "headers-too-large",
        "Headers too large",
        "Request line and headers are larger than the server takes.",
    ),
    HTTPStatus.NOT_IMPLEMENTED: (
        "not-implemented",
        "Not implemented",
        "The server knows no such transfer encoding.",
    ),
}
"""What the parser refuses, by the status that it advises."""
HEAD_SECONDS = 20.0
"""From a connection, or the end of an answer, to a complete head of the next call."""
READ_STALL_SECONDS = 60.0
"""For which a caller may leave an answer that waits for it unread."""
RESERVED_FILES = 200
"""Of the process's open files: database, store, uploads and logs need some whatever callers do."""

log = structlog.get_logger(__name__)


class BoundedProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 with deadlines, and with a limit to connections."""

    head_seconds = HEAD_SECONDS
    read_stall_seconds = READ_STALL_SECONDS
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head; refuse where too few files would be left to work with."""
        super().connection_made(transport)
        if len(self.connections) > max_connections():
            log.warning("connection refused: too many", connections=len(self.connections))
            self._cut("too-many")
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """As uvicorn does; trickled bytes put nothing off."""
        super().data_received(data)
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request with a problem, counted and logged like other answers; then close.

        Says nothing of what was sent: it may hold a key.
        """
        del msg
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # Half an answer is out: breaking the connection is the only way to say so.
            self._cut("invalid")
            return
        # Before the first call there is none, whatever uvicorn's annotation says.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            # Its body went wrong: whoever waits for more of it learns that there is none.
            cycle.disconnected = True
            cycle.message_event.set()
        advised = getattr(sys.exception(), "error_status_hint", 0)
        status: int = advised if advised in REFUSALS else HTTPStatus.BAD_REQUEST
        answer = problem(status, *REFUSALS[status], headers={"Connection": "close"})
        scheme = "https" if self.transport.get_extra_info("sslcontext") else "http"
        headers = completed(answer.raw_headers, {"scheme": scheme})
        for event in (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        metering.count_unrouted(status)
        log.info("request", method=None, path=None, status=int(status), party_id=None)

    def on_response_complete(self) -> None:
        """As uvicorn does, and wait for the next head."""
        super().on_response_complete()
        self._watch_head()

    def pause_writing(self) -> None:
        """The caller reads more slowly than the answer comes."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(
            self.read_stall_seconds, self._cut, "unread-answer"
        )

    def resume_writing(self) -> None:
        """The caller has read on."""
        super().resume_writing()
        self._end_stall()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_watch()
        self._end_stall()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        # Before the first call there is none, whatever uvicorn's annotation says.
        cycle: RequestResponseCycle | None = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if answering:
            self._end_watch()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_seconds, self._cut, "slow-head")

    def _cut(self, reason: str) -> None:
        metering.CUT.labels(reason).inc()
        log.info("connection-cut", reason=reason)
        self.transport.abort()

    def _end_watch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def max_connections() -> int:
    """How many the process's limit of open files leaves room for."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - RESERVED_FILES, RESERVED_FILES)
