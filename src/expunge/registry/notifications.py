"""PostgreSQL's notifications, heard by a thread. They only hasten what would be found anyway: some may be lost."""

import threading
from collections.abc import Callable
from typing import Any

import structlog
from sqlalchemy import Engine, text

LOOK_SECONDS = 0.2
"""Longest wait for a notification before the thread sees whether it should stop."""
OUTAGE_PAUSE_SECONDS = 1.0
"""Wait after the database could not be reached."""

logger = structlog.get_logger(__name__)


class Listener:
    """One thread that hears one channel; `tell` gets each notification's payload."""

    def __init__(self, engine: Engine, channel: str, tell: Callable[[str], None]) -> None:
        self._engine = engine
        self._channel = channel
        self._tell = tell
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hears {channel}", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stopping.set()
        # A thread that waits for a database that is cut off ends with the process.
        self._thread.join(2 * LOOK_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            # Mostly an outage; afterwards there are notifications again.
            except Exception as error:
                logger.warning("not heard for a moment", channel=self._channel, error=str(error))
                self._stopping.wait(OUTAGE_PAUSE_SECONDS)

    def _listen(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # The pool's connections are for others.
            connection.detach()
            connection.execute(text(f"LISTEN {self._channel}"))
            driver: Any = connection.connection.dbapi_connection
            while not self._stopping.is_set():
                for notification in driver.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    self._tell(notification.payload)
