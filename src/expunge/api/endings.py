"""Tells calls that wait for a job that it has ended, as soon as PostgreSQL says so. Never the only way to learn it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from sqlalchemy import Engine, text

from expunge.registry.jobs import ENDED_CHANNEL

LOOK_SECONDS = 0.2
"""Longest wait for a notification before the thread sees whether it should stop."""
OUTAGE_PAUSE_SECONDS = 1.0
"""Wait after the database could not be reached; calls that wait look for themselves meanwhile."""

logger = structlog.get_logger(__name__)


class Endings:
    """One thread that listens for all calls of a process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._waiting: dict[str, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._thread = threading.Thread(target=self._run, name="endings", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        # A thread that waits for a database that is cut off ends with the process.
        self._thread.join(2 * LOOK_SECONDS)

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set when the job has ended; also when it may have."""
        place = (asyncio.get_running_loop(), asyncio.Event())
        with self._guard:
            self._waiting.setdefault(job_id, set()).add(place)
        try:
            yield place[1]
        finally:
            with self._guard:
                self._waiting[job_id].discard(place)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            # Those who wait look for themselves; they must be told again afterwards.
            except Exception as error:
                logger.warning("endings are not heard for a moment", error=str(error))
                self._stopping.wait(OUTAGE_PAUSE_SECONDS)

    def _listen(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # The pool's connections are for calls.
            connection.detach()
            connection.execute(text(f"LISTEN {ENDED_CHANNEL}"))
            driver: Any = connection.connection.driver_connection
            while not self._stopping.is_set():
                for notification in driver.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    self._tell(notification.payload)

    def _tell(self, job_id: str) -> None:
        with self._guard:
            for loop, event in self._waiting.get(job_id, ()):
                loop.call_soon_threadsafe(event.set)
