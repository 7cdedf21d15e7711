"""What the processes beside the api count and time, and the small port where Prometheus reads it.

Each process tells its own. Training processes tell nothing here: their worker does, of what they report.
The same port says whether the process still looks after the queue.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIServer

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.process_collector import ProcessCollector

from expunge.registry.settings import Settings
from expunge.registry.tables import JobKind
from expunge.registry.vitals import Machine

ATTEMPT_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 43200)
"""Seconds: audits take less than one, trainings hours."""
SNAPSHOT_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300)

# When each series began is of no use here, and doubles their number.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

ATTEMPTS = Counter(
    "expunge_job_attempts",
    "Attempts at jobs that have ended, by how.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
ATTEMPT_SECONDS = Histogram(
    "expunge_job_attempt_seconds",
    "How long attempts took, however they ended.",
    ["kind"],
    buckets=ATTEMPT_BUCKETS,
    registry=REGISTRY,
)
RUNNING = Gauge(
    "expunge_worker_jobs_running", "Jobs that this worker works at.", ["kind"], registry=REGISTRY
)
SPEED = Gauge(
    "expunge_training_images_per_second",
    "Of the training that runs, by its last report; 0 when none runs.",
    registry=REGISTRY,
)
SNAPSHOT_SECONDS = Histogram(
    "expunge_snapshot_store_seconds",
    "Hashing a snapshot and storing it.",
    buckets=SNAPSHOT_BUCKETS,
    registry=REGISTRY,
)
RENEWALS = Counter(
    "expunge_lease_renewals", "Heartbeats of running jobs.", ["outcome"], registry=REGISTRY
)
CONTACT = Gauge(
    "expunge_worker_contact_timestamp_seconds",
    "When this process last read or wrote the queue in the database.",
    registry=REGISTRY,
)
WARM = Counter(
    "expunge_warm_lookups",
    "Looks for something that is kept in memory between jobs.",
    ["cache", "outcome"],
    registry=REGISTRY,
)
WAKEUPS = Counter(
    "expunge_wakeups", "Wake-ups handed to Celery by this dispatcher.", ["kind"], registry=REGISTRY
)
EXPIRIES = Counter(
    "expunge_lease_expiries",
    "Jobs taken back by this dispatcher since their worker fell silent.",
    ["kind"],
    registry=REGISTRY,
)
SEALED = Counter(
    "expunge_log_rows_sealed", "Rows of the log sealed by this dispatcher.", registry=REGISTRY
)
SWEPT = Counter(
    "expunge_objects_swept",
    "Objects that nothing named, removed by this dispatcher.",
    registry=REGISTRY,
)
KEPT = Gauge(
    "expunge_objects_kept",
    "Objects that the last sweep of this dispatcher left.",
    registry=REGISTRY,
)
TIDIED = Gauge(
    "expunge_tidied_timestamp_seconds",
    "When this dispatcher last tidied up to the end.",
    registry=REGISTRY,
)

OUTCOMES = ("succeeded", "failed", "crashed", "released", "waits", "lease-lost", "not-recorded")
"""Of attempts; docs/reference/metrics.md says what each means."""

# A counter that first appears at one has not grown for Prometheus: it must have been told at zero.
for _kind in JobKind:
    EXPIRIES.labels(_kind)
    for _outcome in OUTCOMES:
        ATTEMPTS.labels(_kind, _outcome)
for _outcome in ("renewed", "lost", "failed"):
    RENEWALS.labels(_outcome)

HEALTH = "/healthz"
LOOKS_MISSED = 2
"""Workers look at the queue at least every `republish_seconds`; later by so many looks, one is stuck."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""Of WSGI."""

logger = structlog.get_logger(__name__)


def serve(settings: Settings) -> WSGIServer | None:
    """Answer scrapes from a thread where the settings say; without an address, not at all.

    `/healthz` there is 503 once the process has not been at the queue for longer than a lease lasts
    and two looks at it take, whether it hangs or the database is gone.
    Ends the process with the reason where the address cannot be had.
    """
    if not settings.metrics_listen:
        return None
    host, _, port = settings.metrics_listen.rpartition(":")
    REGISTRY.register(Machine(settings.work_dir))
    try:
        server, _ = start_http_server(int(port), addr=host.strip("[]"), registry=REGISTRY)
    except OSError as error:
        sys.exit(f"EXPUNGE_METRICS_LISTEN: {settings.metrics_listen} cannot be had: {error}")
    longest = settings.lease_seconds + LOOKS_MISSED * settings.republish_seconds
    server.set_app(_with_health(server.get_app(), longest))
    logger.info("metrics served", host=host, port=server.server_port)
    return server


def _with_health(metrics: Any, longest_seconds: float) -> Application:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HEALTH:
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        at_queue = REGISTRY.get_sample_value("expunge_worker_contact_timestamp_seconds") or 0.0
        well = time.time() - at_queue <= longest_seconds
        status = "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [b"ok\n" if well else b"not at the queue for too long\n"]

    return answer


@contextmanager
def attempt(kind: JobKind) -> Iterator[None]:
    """Times one attempt."""
    started = time.monotonic()
    try:
        with RUNNING.labels(kind).track_inprogress():
            yield
    finally:
        ATTEMPT_SECONDS.labels(kind).observe(time.monotonic() - started)


def renewed() -> None:
    """A lease was extended."""
    RENEWALS.labels("renewed").inc()
    CONTACT.set_to_current_time()
