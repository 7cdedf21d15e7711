"""Queue, requests, record and alerts as metrics, counted in the database when they are asked for. Never writes.

Every process of the service would tell the same, so that the api alone does. No label names a row.
"""

import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, and_, func, or_, select, text
from sqlalchemy.orm import Session

from expunge.registry import fleet, lifecycles
from expunge.registry.database import Sessions
from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.tables import (
    Alert,
    AlertKind,
    DoomedObject,
    Job,
    LogRow,
    Request,
    TreeHead,
    UnsealedRow,
)

FRESH_SECONDS = 5.0
"""So long an answer is told again: scrapes of several servers, or of an impatient one, cost one."""
LONGEST_SECONDS = 5
"""Of one statement; what takes longer is left out, and the database told as away."""
ROLES = (fleet.DISPATCHER, "interactive", "train")
"""Told even where there are none: that is what an alert looks for."""

logger = structlog.get_logger(__name__)


class Vitals(Collector):
    """What the database says, as Prometheus metrics; of one process."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._guard = threading.Lock()
        self._read_at = float("-inf")
        self._metrics: list[Metric] = []

    def collect(self) -> Iterator[Metric]:
        """The metrics of at most FRESH_SECONDS ago; `expunge_database_up` alone where it does not answer."""
        with self._guard:
            if time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._metrics = self._read()
                self._read_at = time.monotonic()
            yield from self._metrics

    def _read(self) -> list[Metric]:
        up = GaugeMetricFamily("expunge_database_up", "Whether the database answered (1) or not.")
        found: list[Metric] = []
        try:
            with self._sessions() as session:
                session.execute(text(f"SET LOCAL statement_timeout = '{LONGEST_SECONDS}s'"))
                for reading in READINGS:
                    found += reading(session)
        # An outage is a measurement too.
        except Exception as error:
            logger.warning("metrics without the database", error=str(error))
            found = []
        up.add_metric([], float(bool(found)))
        return [up, *found]


class Machine(Collector):
    """What is read at the moment of a scrape, of the machine that answers it."""

    def __init__(self, work_dir: Path) -> None:
        self._work_dir = work_dir

    def collect(self) -> Iterator[Metric]:
        """Space for work, and which version runs."""
        # A dispatcher never makes one.
        if self._work_dir.is_dir():
            disk = shutil.disk_usage(self._work_dir)
            yield _gauge(
                "expunge_work_dir_free_bytes",
                "Free space of the disk with the work folder.",
                disk.free,
            )
            yield _gauge("expunge_work_dir_bytes", "Size of that disk.", disk.total)
        build = GaugeMetricFamily("expunge_build", "Always 1.", labels=["version"])
        build.add_metric([version("expunge")], 1)
        yield build


def _queue(session: Session) -> Iterator[Metric]:
    count = GaugeMetricFamily("expunge_jobs", "Jobs that have not ended.", labels=["kind", "state"])
    oldest = GaugeMetricFamily(
        "expunge_job_oldest_due_seconds",
        "For how long the oldest job has been waiting that may start.",
        labels=["kind"],
    )
    for queue in fleet.queues(session):
        count.add_metric([queue.kind, "due"], queue.waiting)
        count.add_metric([queue.kind, "later"], queue.later)
        count.add_metric([queue.kind, "running"], queue.running)
        oldest.add_metric([queue.kind], queue.oldest_seconds or 0)
    yield from (count, oldest)
    unannounced, longest = session.execute(
        select(func.count(), func.max(_age(Job.due_at))).where(
            Job.state == JobState.QUEUED, Job.due_at <= func.now(), Job.published_at.is_(None)
        )
    ).one()
    yield _gauge(
        "expunge_jobs_unannounced",
        "Jobs that may start and that no dispatcher has announced yet.",
        unannounced,
    )
    yield _gauge(
        "expunge_job_oldest_unannounced_seconds",
        "For how long the oldest of them could have been announced.",
        longest,
    )


def _workers(session: Session) -> Iterator[Metric]:
    now = fleet.now(session)
    found = Counter(
        (each.role, "live" if fleet.is_live(each, now) else "silent")
        for each in fleet.workers(session)
    )
    count = GaugeMetricFamily(
        "expunge_workers",
        "Processes beside the api that were heard of lately, or that fell silent within a day.",
        labels=["role", "state"],
    )
    for role in sorted({*ROLES, *(role for role, _ in found)}):
        for state in ("live", "silent"):
            count.add_metric([role, state], found[role, state])
    yield count
    yield _gauge(
        "expunge_jobs_unserved",
        "Jobs that may start and that no live worker can do.",
        sum(fleet.all_unserved(session).values()),
    )


def _requests(session: Session) -> Iterator[Metric]:
    awaited = _awaited()
    rows = session.execute(
        select(
            Request.state,
            func.count(),
            func.count().filter(awaited, Request.deadline_at < func.now()),
            func.max(_age(Request.created_at)).filter(awaited),
            func.max(_age(Request.deadline_at)).filter(awaited),
            func.count(Request.effective_at),
            func.sum(func.extract("epoch", Request.effective_at - Request.created_at)),
        ).group_by(Request.state)
    ).all()
    count = GaugeMetricFamily("expunge_requests", "Removal requests.", labels=["state"])
    counted = {row[0]: row[1] for row in rows}
    for state in RequestState:
        count.add_metric([state], counted.get(state, 0))
    yield count
    yield _gauge(
        "expunge_requests_overdue",
        "Requests past their deadline whose owner still waits.",
        sum(row[2] for row in rows),
    )
    yield _gauge(
        "expunge_exposure_open_seconds",
        "For how long the owner has waited who has waited longest: the longest exposure now.",
        max((row[3] for row in rows if row[3] is not None), default=0),
    )
    left = GaugeMetricFamily(
        "expunge_request_deadline_seconds",
        "Until the next deadline of a request whose owner waits; negative once it is over.",
    )
    if past := [row[4] for row in rows if row[4] is not None]:
        left.add_metric([], -float(max(past)))
    yield left
    yield SummaryMetricFamily(
        "expunge_exposure_seconds",
        "From requests to the head that no longer holds their data, of those that have come so far.",
        count_value=sum(row[5] for row in rows),
        sum_value=float(sum(row[6] or 0 for row in rows)),
    )


def _record(session: Session) -> Iterator[Metric]:
    waits = UnsealedRow.refused_at.is_(None)
    unsealed, refused = session.execute(
        select(func.count().filter(waits), func.count().filter(~waits)).select_from(UnsealedRow)
    ).one()
    first = select(func.min(UnsealedRow.seq)).where(waits).scalar_subquery()
    lag = session.scalar(select(_age(LogRow.at)).where(LogRow.seq == first))
    head = session.execute(
        select(TreeHead.size, _age(TreeHead.created_at)).order_by(TreeHead.size.desc()).limit(1)
    ).first()
    yield _gauge("expunge_log_unsealed_rows", "Rows of the log that wait for their seal.", unsealed)
    yield _gauge(
        "expunge_log_sealing_lag_seconds", "For how long the oldest of them has waited.", lag
    )
    yield _gauge(
        "expunge_log_refused_rows",
        "Rows of the log that no seal fits: they were written past the service.",
        refused,
    )
    yield _gauge("expunge_log_sealed_rows", "Rows under the newest tree head.", head and head[0])
    age = GaugeMetricFamily("expunge_tree_head_age_seconds", "Since the newest tree head was made.")
    if head is not None:
        age.add_metric([], float(head[1]))
    yield age


def _afterlife(session: Session) -> Iterator[Metric]:
    doomed = session.scalar(select(func.count()).select_from(DoomedObject))
    yield _gauge(
        "expunge_objects_doomed",
        "Objects whose destruction has begun and that the store has not confirmed.",
        doomed,
    )
    rows = session.execute(
        select(Alert.kind, func.count()).where(Alert.acknowledged_at.is_(None)).group_by(Alert.kind)
    )
    found = {row[0]: row[1] for row in rows}
    alerts = GaugeMetricFamily(
        "expunge_alerts_open",
        "Alerts that the model's owner has not taken notice of.",
        labels=["kind"],
    )
    for kind in AlertKind:
        alerts.add_metric([kind], found.get(kind, 0))
    yield alerts


def _size(session: Session) -> Iterator[Metric]:
    bytes_ = session.scalar(select(func.pg_database_size(func.current_database())))
    yield _gauge("expunge_database_bytes", "Size of the database on its disk.", bytes_)


READINGS: tuple[Callable[[Session], Iterator[Metric]], ...] = (
    _queue,
    _workers,
    _requests,
    _record,
    _afterlife,
    _size,
)


def _gauge(name: str, help_: str, value: Any) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_, value=float(value or 0))


def _age(moment: Any) -> ColumnElement[Any]:
    return func.extract("epoch", func.now() - moment)


def _awaited() -> ColumnElement[bool]:
    """Whether a request's owner still waits for the data to be gone."""
    final = [each for each in RequestState if lifecycles.is_final(lifecycles.REQUEST, each)]
    in_force = and_(Request.state == RequestState.COMPLETED, Request.effective_at.is_(None))
    return or_(Request.state.not_in(final), in_force)
