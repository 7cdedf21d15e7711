"""Counts and times the calls of this process, by route template: no label holds an id or anything a caller chose.

Several processes behind one address share their counts where PROMETHEUS_MULTIPROC_DIR names a folder
(prometheus-client's own way); otherwise each tells its own.
"""

import os
import time
from pathlib import Path

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from expunge.registry.vitals import Machine, Vitals

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Label of methods and paths that no route knows: a caller may make up any number of them."""
NO_ANSWER = "none"
"""In place of a status: the caller left, or the connection broke, before there was one."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds; the longest is the longest `Prefer: wait`."""
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# When each series began is of no use here, and doubles their number.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
CALLS = Counter(
    "expunge_http_requests",
    "Answered calls.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
SECONDS = Histogram(
    "expunge_http_request_seconds",
    "From a call to the head of its answer: an event stream or download goes on after it.",
    ["method", "route"],
    buckets=BUCKETS,
    registry=REGISTRY,
)
IN_PROGRESS = Gauge(
    "expunge_http_requests_in_progress",
    "Calls that are being answered, event streams included.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
CUT = Counter(
    "expunge_http_connections_cut",
    "Connections that the service ended without an answer, or in the middle of one.",
    ["reason"],
    registry=REGISTRY,
)
CHECKS = Gauge(
    "expunge_check_ok",
    "Outcome of the newest look at what /readyz checks: 1 for ok.",
    ["check"],
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
ProcessCollector(registry=REGISTRY)


class Metering:
    """ASGI middleware; pure bookkeeping."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, seconds = NO_ANSWER, 0.0

        async def send_metered(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = str(message["status"]), time.perf_counter() - started
            await send(message)

        IN_PROGRESS.inc()
        try:
            await self._app(scope, receive, send_metered)
        finally:
            IN_PROGRESS.dec()
            method, route = known_method(scope), route_of(scope)
            CALLS.labels(method, route, status).inc()
            if status != NO_ANSWER:
                SECONDS.labels(method, route).observe(seconds)


def count_unrouted(status: int) -> None:
    """Count an answer to what was no call, so that the application never saw it."""
    CALLS.labels(OTHER, OTHER, str(status)).inc()


def known_method(scope: Scope) -> str:
    """A call's method; `other` for one that HTTP does not know."""
    return scope["method"] if scope["method"] in METHODS else OTHER


def route_of(scope: Scope) -> str:
    """Template of the route that a call came to, once it has; `other` for none."""
    return str(getattr(scope.get("route"), "path", OTHER))


def exposition(vitals: Vitals, work_dir: Path) -> bytes:
    """Everything that a scrape of the api is told, in Prometheus's text format."""
    at_scrape = CollectorRegistry()
    at_scrape.register(vitals)
    at_scrape.register(Machine(work_dir))
    return generate_latest(counted()) + generate_latest(at_scrape)


def counted() -> CollectorRegistry:
    """What this process has counted, or all that share a folder have together."""
    if FOLDER not in os.environ:
        return REGISTRY
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return together


def leave() -> None:
    """This process ends: its gauges no longer count among those of the others."""
    if FOLDER in os.environ:
        mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
