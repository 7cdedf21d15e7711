"""The dispatcher: announces due jobs to Celery and takes back those whose worker fell silent.

Any number of dispatchers may run. Woken by PostgreSQL notifications; a poll covers lost ones.
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from celery import Celery
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from expunge.registry import (
    destruction,
    direct_uploads,
    fleet,
    idempotency,
    jobs,
    orphans,
    retention,
    waiting,
)
from expunge.registry.database import Sessions, sessions
from expunge.registry.migration import is_current, require_fit
from expunge.registry.objects import ObjectStore
from expunge.registry.settings import Settings
from expunge.worker import metering
from expunge.worker.presence import presence_of_dispatcher
from expunge.worker.sealer import Sealer
from expunge.worker.wakeups import make_celery, wake

POLL_SECONDS = 1.0
"""Longest wait between two looks at the queue."""
RECLAIM_SECONDS = 2.0
SHORTEST_WAIT_SECONDS = 0.05
"""A due job that another dispatcher is announcing must not keep this one spinning."""
LONGEST_GRACE_SECONDS = 15.0
"""For workers' heartbeats after an outage, before leases are taken back."""
OUTAGE_PAUSE_SECONDS = 1.0
"""Wait after PostgreSQL or Redis could not be reached."""

logger = structlog.get_logger(__name__)


class Dispatcher:
    """One dispatcher; `step` does everything that is due now."""

    def __init__(self, settings: Settings, engine: Engine, store: ObjectStore) -> None:
        self._settings = settings
        self._engine = engine
        self._store = store
        self._sessions: Sessions = sessions(engine)
        self._celery: Celery = make_celery(settings)
        self._next_reclaim = 0.0
        self._presence = presence_of_dispatcher()
        self._next_beat = 0.0

    def run(self, stopped: Callable[[], bool]) -> None:
        """Dispatch until `stopped` says so, through outages of PostgreSQL and Redis.

        Tidying has a thread of its own: a slow object store must not hold up wake-ups. So has
        sealing the log, for the same reason.
        """
        sealer = Sealer(self._settings, self._sessions)
        for name, work in (("tidying", self._keep_tidy), ("sealing", sealer.run)):
            threading.Thread(target=work, args=(stopped,), name=name, daemon=True).start()
        self._be_patient()
        while not stopped():
            try:
                self._listen_and_dispatch(stopped)
            # Mostly an outage of PostgreSQL or Redis; without a dispatcher nothing is taken back.
            except Exception as error:
                logger.warning("dispatcher goes on after an error", error=str(error))
                time.sleep(OUTAGE_PAUSE_SECONDS)
                self._be_patient()
        with suppress(OperationalError), self._sessions.begin() as session:
            fleet.leave(session, self._presence.name)

    def _be_patient(self) -> None:
        """Workers were perhaps cut off too: they get the time to say that they are alive."""
        grace = min(self._settings.lease_seconds, LONGEST_GRACE_SECONDS)
        self._next_reclaim = max(self._next_reclaim, time.monotonic() + grace)

    def _listen_and_dispatch(self, stopped: Callable[[], bool]) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"LISTEN {jobs.WAKE_CHANNEL}"))
            driver: Any = connection.connection.driver_connection
            while not stopped():
                require_fit(self._sessions)
                self.step()
                with self._sessions() as session:
                    until_due = waiting.seconds_until_due(session)
                wait = POLL_SECONDS if until_due is None else min(POLL_SECONDS, until_due)
                wait = max(wait, SHORTEST_WAIT_SECONDS)
                for _ in driver.notifies(timeout=wait, stop_after=1):
                    pass

    def step(self) -> None:
        """Announce what is due; now and then take back expired leases.

        Raises:
            OperationalError, BrokerError: nothing was marked as announced that was not.
        """
        if time.monotonic() >= self._next_beat:
            # From here and not from a thread: a dispatcher that hangs is not alive.
            with self._sessions.begin() as session:
                fleet.beat(session, self._presence, stopping=False)
            self._next_beat = time.monotonic() + fleet.BEAT_SECONDS
        if time.monotonic() >= self._next_reclaim:
            self._next_reclaim = time.monotonic() + RECLAIM_SECONDS
            with self._sessions.begin() as session:
                for job in jobs.reclaim_expired(session, max_attempts=self._settings.max_attempts):
                    metering.EXPIRIES.labels(job.kind).inc()
                    logger.warning("lease expired", job_id=job.id, attempt=job.attempt)
        with self._sessions.begin() as session:
            for kind in waiting.take_wakeups(
                session, republish_seconds=self._settings.republish_seconds
            ):
                wake(self._celery, kind)
                metering.WAKEUPS.labels(kind).inc()
        metering.CONTACT.set_to_current_time()

    def _keep_tidy(self, stopped: Callable[[], bool]) -> None:
        pause = self._settings.object_sweep_seconds
        # Not all dispatchers at the same moment.
        due = time.monotonic() + pause * random.uniform(0.2, 1)  # noqa: S311 - not a secret
        while not stopped():
            time.sleep(POLL_SECONDS)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + pause
            try:
                self.tidy()
            # The next time goes on where this one stopped; there must be one.
            except Exception as error:
                logger.warning("tidied up later", error=str(error))

    def tidy(self) -> None:
        """Remove rows whose time is over; destroy what was kept long enough, and objects that nothing names.

        Raises:
            OperationalError, StoreUnavailable, SchemaUnfit: the next time goes on where this one stopped.
        """
        require_fit(self._sessions)
        with self._sessions.begin() as session:
            idempotency.forget_expired(session, hours=self._settings.idempotency_hours)
            direct_uploads.forget_expired(session)
            fleet.forget_gone(session)
        if not is_current(self._engine):
            # Which rows name objects is known for this version's own schema only.
            logger.info("objects are left to dispatchers of the schema's version")
            return
        for checkpoint_id in retention.start(self._sessions):
            logger.info("time of a checkpoint is over", checkpoint_id=checkpoint_id)
        destruction.finish_all(self._sessions, self._store)
        swept = orphans.sweep(
            self._sessions, self._store, grace_seconds=self._settings.object_grace_seconds
        )
        metering.SWEPT.inc(len(swept.removed))
        metering.KEPT.set(swept.kept)
        metering.TIDIED.set_to_current_time()
        if swept.removed:
            logger.info("objects swept", removed=len(swept.removed), kept=swept.kept)
