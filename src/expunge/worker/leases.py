"""Keeping a lease alive beside work that cannot be interrupted. Never extends a lease that was lost."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from expunge.registry import jobs
from expunge.registry.jobs import Lease
from expunge.registry.transitions import LeaseLost
from expunge.worker.context import Context

BEATS_PER_LEASE = 3
"""Heartbeats sent in the time that a lease lasts: two may fail before it runs out."""

logger = structlog.get_logger(__name__)


@contextmanager
def kept_alive(context: Context, lease: Lease) -> Iterator[None]:
    """Extend the lease from a thread while the block runs.

    A lost lease is not reported here: the block's own write to the job finds out, and rolls back.
    """
    done = threading.Event()
    seconds = context.settings.lease_seconds

    def beat() -> None:
        while not done.wait(seconds / BEATS_PER_LEASE):
            try:
                with context.sessions.begin() as session:
                    jobs.heartbeat(session, lease, lease_seconds=seconds)
            except LeaseLost:
                return
            except SQLAlchemyError as error:
                logger.warning("heartbeat failed", job_id=lease.job_id, error=str(error))

    thread = threading.Thread(target=beat, name=f"heartbeat-{lease.job_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
