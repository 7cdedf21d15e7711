"""Keeps sealing the log, a batch at a time. Any number of processes may; one at a time does."""

import time
from collections.abc import Callable

import structlog

from expunge.registry import signing_keys
from expunge.registry.database import Sessions
from expunge.registry.migration import require_fit
from expunge.registry.record import sealing
from expunge.registry.settings import Settings
from expunge.registry.signing_keys import NoSigningKey
from expunge.worker import metering

PAUSE_SECONDS = 1.0
"""Between two heads, unless more than a batch waits."""

logger = structlog.get_logger(__name__)


class Sealer:
    """Signs each head with the key of the settings.

    Heads are unsigned only where there has never been a key: an unsigned head among signed ones
    would look like an intruder's, and cannot be replaced. So rows wait while the key is away.
    """

    def __init__(self, settings: Settings, sessions: Sessions) -> None:
        self._settings = settings
        self._sessions = sessions

    def run(self, stopped: Callable[[], bool]) -> None:
        """Seal until `stopped` says so, through outages of PostgreSQL."""
        while not stopped():
            try:
                sealed = self.step()
                metering.SEALED.inc(sealed)
            # Mostly an outage; what is not sealed now is sealed later.
            except Exception as error:
                logger.warning("log is sealed later", error=str(error))
                sealed = 0
            if sealed < sealing.BATCH:
                time.sleep(PAUSE_SECONDS)

    def step(self) -> int:
        """Seal one batch under one head; how many rows it had.

        Raises:
            SchemaUnfit: a newer version's rows may be sealed otherwise, and a seal cannot be taken back.
        """
        require_fit(self._sessions)
        with self._sessions.begin() as session:
            if not sealing.is_due(session):
                return 0
            try:
                signer = signing_keys.current(session, self._settings)
            except NoSigningKey as error:
                logger.warning("log waits for the key to be sealed", error=error.detail)
                return 0
            return sealing.seal(session, signer)
