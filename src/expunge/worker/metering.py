"""What the processes beside the api count and time, and the small port where Prometheus reads it.

Each process tells its own. Training processes tell nothing here: their worker does, of what they report.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

logger = structlog.get_logger(__name__)


def serve(settings: Settings) -> WSGIServer | None:
    """Answer scrapes from a thread where the settings say; without an address, not at all.

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
    logger.info("metrics served", host=host, port=server.server_port)
    return server


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
