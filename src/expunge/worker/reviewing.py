"""Review jobs: the service's own audits, one request after the other, and the test for relearning.

Whatever else waits for this worker goes first, also in the middle of an audit, but not for ever.
Raises alerts; never decides what follows from one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from sqlalchemy import select

from expunge.evidence.audit.relearning import ALPHA, Relearning, expected_false_alarms, relearning
from expunge.registry import audits, orphans, reviews
from expunge.registry.jobs import Lease
from expunge.registry.objects import ObjectDamaged, ObjectMissing
from expunge.registry.subsets import Subset
from expunge.registry.tables import Audit, Checkpoint, Dataset
from expunge.worker.auditing import Auditor, Finding, Plan
from expunge.worker.context import Context
from expunge.worker.encoders import Encoders, Pair
from expunge.worker.leases import OUTAGES, Held
from expunge.worker.watching import JobFailed

LOOK_SECONDS = 0.2
"""Between two looks at whether something else waits."""
LONGEST_HOLD_UP_SECONDS = 60.0
"""Others that keep coming hold up a review for so long at a time, plus the last one of them."""
TURN_SECONDS = 5.0
"""What a review that was held up for so long has for itself before it makes room again."""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Audited:
    """One audit that is to be made, as the database has it."""

    audit_id: str
    plan: Plan
    since: Checkpoint | None
    """Under a later head: what its outputs are compared with for relearning."""


@dataclass
class Reviewer:
    """Runs review jobs of one worker process."""

    context: Context
    encoders: Encoders
    auditor: Auditor
    others_first: Callable[[float], bool]
    """Does whatever else waits for this worker, for so many seconds; whether nothing is left."""
    look_seconds: float = LOOK_SECONDS
    longest_hold_up_seconds: float = LONGEST_HOLD_UP_SECONDS
    turn_seconds: float = TURN_SECONDS
    _next_look: float = field(default=0.0, init=False)

    def run(self, held: Held) -> None:
        """Make the audits of a claimed review that are not settled yet, and end it."""
        lease = held.lease
        audit_ids = held.patiently(lambda: self._begin(lease))
        if audit_ids is None:
            logger.info("another head came into force before the review of this one started")
            return
        held.interlude = self._let_others_go_first
        tests = alarms = 0
        for audit_id in audit_ids:
            held.check()
            found = self._review(audit_id, held)
            tests += found is not None
            alarms += found is not None and found.relearned
        held.interlude = None
        told = {
            "relearning_tests": tests,
            "alerts": alarms,
            "alpha": ALPHA,
            "expected_false_alarms": expected_false_alarms(tests),
        }
        held.patiently(lambda: self._finish(lease, told))

    def _let_others_go_first(self) -> None:
        if time.monotonic() < self._next_look:
            return
        pause = self.look_seconds
        try:
            if not self.others_first(self.longest_hold_up_seconds):
                pause = self.turn_seconds
        except OUTAGES as error:
            logger.warning("the queue cannot be read; the review goes on", error=str(error))
        self._next_look = time.monotonic() + pause

    def _begin(self, lease: Lease) -> list[str] | None:
        newest = self.context.settings.review_requests
        with self.context.sessions.begin() as session:
            return reviews.begin(session, lease, newest=newest)

    def _review(self, audit_id: str, held: Held) -> Relearning | None:
        """Settle one audit. What is wrong with its samples or weights must not end the others."""
        audited = held.patiently(lambda: _read(self.context, audit_id))
        try:
            finding = self.auditor.find(audited.plan, held)
            found = self._relearning(audited, finding, held)
        except JobFailed as error:
            held.patiently(partial(self._give_up, held.lease, audit_id, error.failure.reason))
            return None
        except (ObjectDamaged, ObjectMissing) as error:
            logger.warning("audit left out", audit_id=audit_id, error=str(error))
            reason = "a stored object is damaged or missing"
            held.patiently(partial(self._give_up, held.lease, audit_id, reason))
            return None
        held.patiently(partial(self._settle, held.lease, audit_id, finding, found))
        return found

    def _relearning(self, audited: _Audited, finding: Finding, held: Held) -> Relearning | None:
        """None without a later head, without a control, or with too few samples."""
        if audited.since is None:
            return None
        try:
            return self._compared(audited.since, audited.plan, finding, held)
        except (JobFailed, ObjectMissing) as error:
            # Its time may have come while the review ran; the audit itself is done.
            logger.warning("no relearning test", audit_id=audited.audit_id, error=str(error))
            return None

    def _compared(
        self, since: Checkpoint, plan: Plan, finding: Finding, held: Held
    ) -> Relearning | None:
        encoders = self.encoders
        pair = Pair(since, plan.pair.after, plan.pair.views, plan.pair.seed)
        control = encoders.control(pair, held)
        if control is None:
            return None
        own = finding.own
        if pair.key != plan.pair.key:
            own = encoders.outputs(pair, encoders.choose(plan.subset, plan.datasets, held), held)
        return relearning(own, control.levels, seed=pair.seed)

    def _settle(
        self, lease: Lease, audit_id: str, finding: Finding, found: Relearning | None
    ) -> None:
        context = self.context
        with context.scratch(audit_id) as folder:
            key = orphans.put_bytes(
                context.sessions, context.store, finding.bundle, folder, lease=lease
            )
        with context.sessions.begin() as session:
            reviews.settle(
                session,
                lease,
                audit_id,
                report=finding.report,
                bundle_key=key,
                relearned=_detail(found) if found is not None and found.relearned else None,
            )

    def _give_up(self, lease: Lease, audit_id: str, reason: str) -> None:
        with self.context.sessions.begin() as session:
            reviews.give_up(session, lease, audit_id, reason)

    def _finish(self, lease: Lease, metrics: dict[str, Any]) -> None:
        with self.context.sessions.begin() as session:
            reviews.finish(session, lease, metrics)


def _detail(found: Relearning) -> dict[str, Any]:
    return found.to_dict() | {"sentence": found.sentence}


def _read(context: Context, audit_id: str) -> _Audited:
    with context.sessions() as session:
        row = session.get_one(Audit, audit_id)
        asked = row.asked
        subset = Subset.of(asked)
        datasets = select(Dataset).where(Dataset.id.in_(subset.dataset_ids))
        since = asked.get("since_checkpoint_id")
        return _Audited(
            audit_id,
            Plan(
                pair=Pair(row.before, row.after, asked["views"], asked["seed"]),
                subset=subset,
                datasets=session.scalars(datasets).all(),
                owner_id=row.owner_id,
                matrix_size=asked["matrix_size"],
                held_before=audits.held_before(session, row),
            ),
            None if since is None else session.get_one(Checkpoint, since),
        )
