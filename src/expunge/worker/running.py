"""From a wake-up to a job's end: claim the next one, run it by kind, and turn what went wrong into its reason."""

import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection
from functools import cached_property
from typing import TYPE_CHECKING

import structlog

from expunge.evidence.manifest import revision
from expunge.registry import jobs, spans, waiting
from expunge.registry.jobs import Failure, Lease
from expunge.registry.migration import SchemaUnfit, require_fit
from expunge.registry.objects import ObjectDamaged, ObjectMissing
from expunge.registry.tables import JobKind
from expunge.registry.transitions import LeaseLost
from expunge.worker import intake, metering, oracles
from expunge.worker.comparing import compare
from expunge.worker.context import Context
from expunge.worker.leases import OUTAGES, Held, Stopped, kept_alive
from expunge.worker.task import NO_SPACE
from expunge.worker.training import train
from expunge.worker.versions import FromNewerVersion
from expunge.worker.watching import JobCrashed, JobFailed

if TYPE_CHECKING:
    from expunge.worker.auditing import Auditor
    from expunge.worker.encoders import Encoders
    from expunge.worker.encoding import Encoder
    from expunge.worker.reviewing import Reviewer

IDLE_CHECK_SECONDS = 1.0
SUCCEEDED = "succeeded"
LEASE_LOST = "lease-lost"
NOT_RECORDED = "not-recorded"

logger = structlog.get_logger(__name__)


class Runner:
    """Runs jobs of one worker process, one at a time."""

    def __init__(
        self,
        context: Context,
        kinds: Collection[JobKind],
        role: str = "worker",
        labels: Collection[str] = (),
    ) -> None:
        """`labels` are what this worker offers to models that ask for some."""
        # Read while it is that of this process: the checkout that it runs from may move on.
        revision()
        self._context = context
        self._kinds = kinds
        self._labels = labels
        self._woken = threading.Event()
        self._idle = threading.Event()
        self.name = f"{role}-{os.getpid()}.{secrets.token_hex(2)}@{socket.gethostname()}"
        """Who holds the leases, in rows and log. In a container that starts again all but the digits is the same."""

    @cached_property
    def encoders(self) -> "Encoders":
        """Loaded when first needed, or by asking for it early: it brings torch along."""
        from expunge.worker.encoders import Encoders  # noqa: PLC0415 - see the docstring

        return Encoders(self._context)

    @cached_property
    def auditor(self) -> "Auditor":
        """As `encoders`, which it runs."""
        from expunge.worker.auditing import Auditor  # noqa: PLC0415 - see `encoders`

        return Auditor(self._context, self.encoders)

    @cached_property
    def encoder(self) -> "Encoder":
        """As `encoders`, whose outputs it hands out."""
        from expunge.worker.encoding import Encoder  # noqa: PLC0415 - see `encoders`

        return Encoder(self._context, self.encoders)

    @cached_property
    def reviewer(self) -> "Reviewer":
        """As `auditor`, whose work it repeats for many."""
        from expunge.worker.reviewing import Reviewer  # noqa: PLC0415 - see `encoders`

        return Reviewer(self._context, self.encoders, self.auditor, self._work_off_before_reviews)

    def wake(self) -> None:
        """Look now; returns at once."""
        self._woken.set()

    def wake_and_wait(self) -> None:
        """Look for work now, and return once there is none left: a busy worker takes no other's wake-ups."""
        self._idle.clear()
        self.wake()
        while not self._idle.wait(IDLE_CHECK_SECONDS):
            if self._context.stopping.is_set():
                return

    def run(self) -> None:
        """Work whenever woken, until the context says stop.

        Looks at the database now and then without being woken as well: no wake-up that Redis or
        Celery loses costs more than that.
        """
        stopping, pause = self._context.stopping, self._context.settings.republish_seconds
        try:
            while not stopping.is_set():
                self._woken.clear()
                try:
                    require_fit(self._context.sessions)
                    self.work_off()
                except SchemaUnfit as error:
                    logger.warning("worker takes no job", error=str(error))
                except OUTAGES as error:
                    logger.warning("worker waits for the database", error=str(error))
                # A worker that lives but does nothing any more is worse than any error.
                except Exception:
                    logger.exception("worker goes on after an unexpected error")
                if not self._woken.is_set():
                    self._idle.set()
                # Not all workers at the same moment.
                self._woken.wait(pause * random.uniform(0.5, 1))  # noqa: S311 - not a secret
        finally:
            self._idle.set()

    def work_off(self) -> None:
        """Do what waits, one job after the other, until nothing is left or the context says stop."""
        self._work_off(self._kinds)

    def _work_off_before_reviews(self, longest_seconds: float) -> bool:
        """As `work_off`, for whatever somebody waits for: nobody does for a review."""
        kinds = [kind for kind in self._kinds if kind != JobKind.REVIEW]
        return self._work_off(kinds, longest_seconds)

    def _work_off(self, kinds: Collection[JobKind], longest_seconds: float = math.inf) -> bool:
        """Begin no job after so many seconds; whether nothing is left."""
        end = time.monotonic() + longest_seconds
        while not self._context.stopping.is_set():
            lease = waiting.claim_next(
                self._context.sessions,
                kinds,
                worker=self.name,
                lease_seconds=self._context.settings.lease_seconds,
                labels=self._labels,
            )
            metering.CONTACT.set_to_current_time()
            if lease is None:
                return True
            self.carry_out(lease)
            if time.monotonic() >= end:
                return False
        return False

    def carry_out(self, lease: Lease) -> None:
        """Do a claimed job; never raises for what a job can do wrong."""
        with (
            structlog.contextvars.bound_contextvars(
                job_id=lease.job_id, attempt=lease.attempt, worker=self.name
            ),
            spans.attempt(lease.job_id, lease.kind, lease.attempt) as span,
            kept_alive(self._context, lease) as held,
        ):
            with metering.attempt(lease.kind):
                outcome = self._try(held)
            metering.ATTEMPTS.labels(lease.kind, outcome).inc()
            span.describe({"expunge.job.outcome": outcome}, failed=outcome != SUCCEEDED)
            for tidy in held.afterwards:
                try:
                    tidy()
                # The attempt's end is written; a sweep removes what stays.
                except Exception:
                    logger.exception("what the attempt left is removed later")

    def _try(self, held: Held) -> str:
        """How the attempt ended, as metrics call it."""
        lease = held.lease
        logger.info("job started", kind=lease.kind)
        try:
            self._work(held)
            outcome = SUCCEEDED
            logger.info("job succeeded")
        except LeaseLost:
            outcome = LEASE_LOST
            logger.warning("lease lost; nothing more of this attempt is recorded")
        except Stopped:
            outcome = self._release(lease)
        except FromNewerVersion as error:
            outcome = self._wait_out(lease, "its worker is older than what made the job", error)
        except JobCrashed as crash:
            outcome = self._retry(lease, crash.failure)
        except JobFailed as error:
            outcome = self._fail(lease, error.failure)
        except (ObjectDamaged, ObjectMissing) as error:
            reason = "a stored object is damaged or missing"
            outcome = self._fail(lease, Failure("damaged-object", reason, str(error)))
        except OUTAGES as error:
            outcome = self._wait_out(lease, "a store could not be reached", error)
        # Whatever else a job runs into must end in its reason, not in a worker that is gone.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                return self._wait_out(lease, "the worker's disk is full", error)
            logger.exception("job ran into an unexpected error")
            reason = "an unexpected error; the operator's log says more"
            words = f"{type(error).__name__}: {error}"
            outcome = self._retry(lease, Failure("exception", reason, words))
        return outcome

    def _work(self, held: Held) -> None:
        match held.lease.kind:
            case JobKind.PRETRAIN | JobKind.UNLEARN:
                held.afterwards.append(self._drop_outdated_oracles)
                train(self._context, held)
            case JobKind.COMPARE:
                self._drop_outdated_oracles()
                # The head may forget what this comparison retrains on while it runs.
                held.afterwards.append(self._drop_outdated_oracles)
                compare(self._context, held)
            case JobKind.SEAL:
                intake.seal(self._context, held)
            case JobKind.VERIFY:
                intake.verify(self._context, held)
            case JobKind.ENCODE:
                self.encoder.run(held)
            case JobKind.AUDIT:
                self.auditor.run(held)
            case JobKind.REVIEW:
                self.reviewer.run(held)

    def _drop_outdated_oracles(self) -> None:
        oracles.drop_outdated(self._context)

    def _release(self, lease: Lease) -> str:
        def write() -> None:
            with self._context.sessions.begin() as session:
                jobs.release(session, lease, "its worker was stopped")

        return self._end(write, "job released")

    def _fail(self, lease: Lease, failure: Failure) -> str:
        def write() -> None:
            with self._context.sessions.begin() as session:
                jobs.fail(session, lease, failure)

        return self._end(write, "job failed", reason=failure.reason, words=failure.words)

    def _retry(self, lease: Lease, failure: Failure) -> str:
        settings = self._context.settings

        def write() -> None:
            with self._context.sessions.begin() as session:
                jobs.retry(
                    session,
                    lease,
                    failure,
                    max_attempts=settings.max_attempts,
                    retry_seconds=settings.retry_seconds,
                )

        return self._end(write, "job crashed", reason=failure.reason, words=failure.words)

    def _wait_out(self, lease: Lease, reason: str, error: Exception) -> str:
        settings = self._context.settings

        def write() -> None:
            with self._context.sessions.begin() as session:
                jobs.wait_out(
                    session,
                    lease,
                    reason,
                    max_outages=settings.max_outages,
                    retry_seconds=settings.retry_seconds,
                )

        return self._end(write, "job waits", reason=reason, error=str(error))

    def _end(self, write: Callable[[], None], event: str, **told: str) -> str:
        """Write how the attempt ended; what cannot be written now, the lease's end says later."""
        try:
            write()
        except LeaseLost:
            logger.warning("lease lost; the job was given away", intended=event)
            return LEASE_LOST
        # Whatever cannot be written, the lease's end says later.
        except Exception as error:
            logger.warning("left to the lease's end", intended=event, error=str(error))
            return NOT_RECORDED
        logger.warning(event, **told)
        return event.removeprefix("job ")
