"""The dispatcher: announces due jobs to Celery and takes back those whose worker fell silent.

Any number of dispatchers may run. Woken by PostgreSQL notifications; a poll covers lost ones.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from expunge.registry import jobs
from expunge.registry.database import Sessions, sessions
from expunge.registry.settings import Settings
from expunge.worker.wakeups import make_celery, wake

POLL_SECONDS = 1.0
"""Longest wait between two looks at the queue."""
RECLAIM_SECONDS = 2.0
OUTAGE_PAUSE_SECONDS = 1.0
"""Wait after PostgreSQL or Redis could not be reached."""

logger = structlog.get_logger(__name__)


class Dispatcher:
    """One dispatcher; `step` does everything that is due now."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._sessions: Sessions = sessions(engine)
        self._celery: Celery = make_celery(settings)
        self._next_reclaim = 0.0

    def run(self, stopped: Callable[[], bool]) -> None:
        """Dispatch until `stopped` says so, through outages of PostgreSQL and Redis."""
        while not stopped():
            try:
                self._listen_and_dispatch(stopped)
            except (OperationalError, BrokerError) as error:
                logger.warning("dispatcher waits for an outage to end", error=str(error))
                time.sleep(OUTAGE_PAUSE_SECONDS)

    def _listen_and_dispatch(self, stopped: Callable[[], bool]) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"LISTEN {jobs.WAKE_CHANNEL}"))
            driver: Any = connection.connection.driver_connection
            while not stopped():
                self.step()
                with self._sessions() as session:
                    until_due = jobs.seconds_until_due(session)
                wait = min(POLL_SECONDS, POLL_SECONDS if until_due is None else until_due)
                for _ in driver.notifies(timeout=wait, stop_after=1):
                    pass

    def step(self) -> None:
        """Announce what is due; now and then take back expired leases.

        Raises:
            OperationalError, BrokerError: nothing was marked as announced that was not.
        """
        with self._sessions.begin() as session:
            for job_id, kind in jobs.take_wakeups(
                session, republish_seconds=self._settings.republish_seconds
            ):
                wake(self._celery, job_id, kind)
        if time.monotonic() >= self._next_reclaim:
            self._next_reclaim = time.monotonic() + RECLAIM_SECONDS
            with self._sessions.begin() as session:
                for job in jobs.reclaim_expired(session, max_attempts=self._settings.max_attempts):
                    logger.warning("lease expired", job_id=job.id, attempt=job.attempt)
