"""Keeping a lease alive beside the work, and working through short outages. Never extends a lease that was lost."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from expunge.registry import jobs
from expunge.registry.jobs import Lease
from expunge.registry.objects import StoreUnavailable
from expunge.registry.orphans import ObjectRemoved
from expunge.registry.transitions import LeaseLost
from expunge.worker import metering
from expunge.worker.context import Context

BEATS_PER_LEASE = 3
"""Heartbeats sent in the time that a lease lasts: two may fail before it runs out."""
LONGEST_BEAT_SECONDS = 2.0
"""Between two heartbeats at most: as late may a cancelled job's worker learn of it."""
PROGRESS_SECONDS = 0.5
"""Between two reports of fresh progress."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 15.0

OUTAGES = (StoreUnavailable, ObjectRemoved, OperationalError, InterfaceError, PoolTimeout)
"""What says that a store is away (or has swept up), and that the same call may work later."""

logger = structlog.get_logger(__name__)
T = TypeVar("T")


class Stopped(Exception):
    """The worker is being stopped: the job goes back to the queue."""


class Held:
    """A lease that a thread keeps alive; set `progress` to have it reported."""

    def __init__(self, context: Context, lease: Lease) -> None:
        self.lease = lease
        self.progress: dict[str, Any] | None = None
        self.afterwards: list[Callable[[], None]] = []
        """What is done once the attempt's end is written, however it ended."""
        self.interlude: Callable[[], None] | None = None
        """What this work makes room for wherever it looks whether it may go on."""
        self._context = context
        self._lost = threading.Event()
        self._done = threading.Event()

    def check(self) -> None:
        """Let long work end early.

        Raises:
            LeaseLost: the job was given away or cancelled.
            Stopped: the worker is being stopped.
        """
        if self._lost.is_set():
            raise LeaseLost(f"{self.lease.job_id} no longer runs under this lease")
        if self._context.stopping.is_set():
            raise Stopped
        if self.interlude is not None:
            self.interlude()

    def patiently(self, act: Callable[[], T]) -> T:
        """What `act` returns; while a store is away it is called again and again, ever more rarely.

        Raises:
            LeaseLost, Stopped: see `check`.
            StoreUnavailable, OperationalError, InterfaceError, TimeoutError: the outage lasted
                longer than the settings' patience.
        """
        give_up = time.monotonic() + self._context.settings.outage_patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return act()
            except OUTAGES as error:
                if time.monotonic() > give_up:
                    raise
                logger.warning("waiting for a store to come back", error=str(error))
            self._wait(pause * random.uniform(0.5, 1))  # noqa: S311 - not a secret
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self._lost.wait(min(left, PROGRESS_SECONDS))
        self.check()

    def beat_until_done(self) -> None:
        """Extend the lease until the block ends or it is lost; runs in a thread of its own."""
        seconds = self._context.settings.lease_seconds
        pause = min(LONGEST_BEAT_SECONDS, seconds / BEATS_PER_LEASE)
        last, reported = time.monotonic(), None
        while not self._done.wait(min(PROGRESS_SECONDS, pause)):
            progress = self.progress
            if progress is reported and time.monotonic() - last < pause:
                continue
            try:
                with self._context.sessions.begin() as session:
                    jobs.heartbeat(session, self.lease, lease_seconds=seconds, progress=progress)
                reported = progress
                metering.renewed()
            except LeaseLost:
                metering.RENEWALS.labels("lost").inc()
                self._lost.set()
                return
            # Going on is all that helps: without heartbeats the job is given away.
            except Exception as error:
                metering.RENEWALS.labels("failed").inc()
                logger.warning("heartbeat failed", error=str(error))
            last = time.monotonic()

    def end(self) -> None:
        """Stop the heartbeats."""
        self._done.set()


@contextmanager
def kept_alive(context: Context, lease: Lease) -> Iterator[Held]:
    """Extend the lease from a thread while the block runs."""
    held = Held(context, lease)
    thread = threading.Thread(
        # With the attempt's names on its log lines.
        target=copy_context().run,
        args=(held.beat_until_done,),
        name=f"heartbeat-{lease.job_id}",
        daemon=True,
    )
    thread.start()
    try:
        yield held
    finally:
        held.end()
        thread.join()
