"""From a wake-up to a job's end: claim, run by kind, and turn what went wrong into the job's reason."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import structlog

from expunge.registry import jobs
from expunge.registry.jobs import Lease
from expunge.registry.objects import ObjectDamaged, ObjectMissing
from expunge.registry.tables import JobKind
from expunge.registry.transitions import LeaseLost
from expunge.worker import intake, oracles
from expunge.worker.comparing import compare
from expunge.worker.context import Context
from expunge.worker.leases import kept_alive
from expunge.worker.training import train
from expunge.worker.watching import JobFailed, Stopped

if TYPE_CHECKING:
    from expunge.worker.auditing import Auditor

logger = structlog.get_logger(__name__)


class Runner:
    """Runs jobs of one worker process, one at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @cached_property
    def auditor(self) -> "Auditor":
        """Loaded at the first audit, or by `warm_up`: it brings torch along."""
        from expunge.worker.auditing import Auditor  # noqa: PLC0415 - see the docstring

        return Auditor(self._context)

    def run(self, job_id: str) -> None:
        """Do the job if it is to be had; never raises for what a job can do wrong."""
        lease = jobs.claim(
            self._context.sessions,
            job_id,
            lease_seconds=self._context.settings.lease_seconds,
        )
        if lease is None:
            return
        with structlog.contextvars.bound_contextvars(job_id=job_id, attempt=lease.attempt):
            logger.info("job started", kind=lease.kind)
            try:
                self._work(lease)
                logger.info("job succeeded")
            except LeaseLost:
                logger.warning("lease lost; nothing of this attempt is recorded")
            except Stopped:
                self._finish(
                    lease,
                    lambda: self._release(lease, "its worker was stopped; it starts again"),
                )
            except JobFailed as error:
                failure = error
                self._finish(lease, lambda: self._fail(lease, failure))
            except (ObjectDamaged, ObjectMissing) as error:
                damage = JobFailed("a stored object is damaged or missing", detail=str(error))
                self._finish(lease, lambda: self._fail(lease, damage))
            # Whatever else a job runs into must end in its reason, not in a worker that is gone.
            except Exception as error:
                logger.exception("job failed unexpectedly")
                accident = JobFailed(
                    f"an unexpected error; the operator's log says more under {job_id}",
                    detail=f"{type(error).__name__}: {error}",
                )
                self._finish(lease, lambda: self._fail(lease, accident))

    def _work(self, lease: Lease) -> None:
        match lease.kind:
            case JobKind.PRETRAIN | JobKind.UNLEARN:
                train(self._context, lease)
                oracles.drop_outdated(self._context)
            case JobKind.COMPARE:
                oracles.drop_outdated(self._context)
                try:
                    compare(self._context, lease)
                finally:
                    # The head may have forgotten what this comparison retrained on while it ran.
                    oracles.drop_outdated(self._context)
            case JobKind.SEAL:
                with kept_alive(self._context, lease):
                    intake.seal(self._context, lease)
            case JobKind.VERIFY:
                with kept_alive(self._context, lease):
                    intake.verify(self._context, lease)
            case JobKind.AUDIT:
                with kept_alive(self._context, lease):
                    self.auditor.run(lease)

    def _finish(self, lease: Lease, write: Callable[[], None]) -> None:
        try:
            write()
        except LeaseLost:
            logger.warning("lease lost; the job was given away", job_id=lease.job_id)

    def _fail(self, lease: Lease, failure: JobFailed) -> None:
        with self._context.sessions.begin() as session:
            jobs.fail(session, lease, str(failure), detail=failure.detail)
        logger.warning("job failed", reason=str(failure), detail=failure.detail)

    def _release(self, lease: Lease, reason: str) -> None:
        with self._context.sessions.begin() as session:
            jobs.release(session, lease, reason)
        logger.info("job released", reason=reason)
