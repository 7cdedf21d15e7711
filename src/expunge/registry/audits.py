"""Audits: what may be asked of a request's before and after, and the recorded answer. Never computes one."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.evidence.protocol import views_seed
from expunge.registry import access, idempotency, jobs, orphans, retention, waiting
from expunge.registry.access import STANDARD, Budget
from expunge.registry.asking import compared, subset_of
from expunge.registry.ids import Prefix, new_id
from expunge.registry.subsets import Draw
from expunge.registry.tables import (
    Audit,
    CheckpointDataset,
    Job,
    JobKind,
    Party,
)

BUNDLE = "bundle"
"""Member of `Audit.objects`."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """How samples are compared; the answer repeats it."""

    views: int
    seed: int | None
    """Of the views; none: that of the service's own audits of the model."""
    matrix_size: int

    def to_params(self) -> dict[str, int | None]:
        """As a job's parameters hold it."""
        return {"views": self.views, "seed": self.seed, "matrix_size": self.matrix_size}

    def of(self, model_id: str) -> "Protocol":
        """With a seed, about this model."""
        seed = views_seed(model_id) if self.seed is None else self.seed
        return replace(self, seed=seed)


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request is audited, and how; all of its data sets if none are named."""

    request_id: str
    protocol: Protocol
    dataset_ids: tuple[str, ...] | None = None
    sample_keys: tuple[str, ...] | None = None
    draw: Draw | None = None

    def call(self, party: Party, idempotency_key: str | None) -> idempotency.Call:
        """The call that asks for it."""
        ids, keys = (
            None if each is None else sorted(set(each))
            for each in (self.dataset_ids, self.sample_keys)
        )
        draw = None if self.draw is None else [self.draw.samples, self.draw.seed]
        content = [self.request_id, ids, keys, draw, self.protocol.to_params()]
        return idempotency.Call(party.id, idempotency_key, "create-audit", content)


def create(
    session: Session,
    party: Party,
    asked: Asked,
    *,
    budget: Budget = STANDARD,
    idempotency_key: str | None = None,
) -> Audit:
    """Queue an audit of a completed request by its owner, or by an auditor of the owner's.

    With the key and content of an earlier call, the answer is that call's audit. Sample keys are
    taken as `asking.require_known_keys` left them.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound: there is no such request that the party may ask about.
        BudgetSpent: so many samples and views are more than what is left of the day's budget.
        Conflict: the request is not completed, or has no before and after.
        CheckpointDestroyed, DatasetDeleted: what it would compare is gone.
        Invalid: a data set is not part of what the party may ask about.
    """
    audit_id = new_id(Prefix.AUDIT)
    if earlier := idempotency.remember(session, asked.call(party, idempotency_key), audit_id):
        return session.get_one(Audit, earlier)
    admission = access.open_to(session, party, asked.request_id)
    request = admission.request
    subset = subset_of(admission, asked)
    before, after = compared(request)
    protocol = asked.protocol.of(request.model_id)
    held = retention.hold(session, checkpoint_ids=[before, after], dataset_ids=subset.dataset_ids)
    access.charge(
        session,
        party,
        admission,
        kind="audit",
        samples=subset.count(sum(each.samples for each in held)),
        views=asked.protocol.views,
        budget=budget,
    )
    job = waiting.enqueue(
        session,
        JobKind.AUDIT,
        actor=party.id,
        owner_id=party.id,
        params={"audit_id": audit_id, **subset.to_params(), **protocol.to_params()},
    )
    audit = Audit(
        id=audit_id,
        request_id=request.id,
        owner_id=request.owner_id,
        party_id=party.id,
        job_id=job.id,
        before_checkpoint_id=before,
        after_checkpoint_id=after,
    )
    session.add(audit)
    session.flush()
    return audit


def held_before(session: Session, audit: Audit) -> bool:
    """Whether the audit's before was trained on all of its data sets, and had forgotten none of them.

    It is otherwise where a base was destroyed, or where some of what a request was about had been
    forgotten, or trained without, before it was carried out.
    """
    wanted = set(audit.asked["dataset_ids"])
    held = select(CheckpointDataset.dataset_id).where(
        CheckpointDataset.checkpoint_id == audit.before_checkpoint_id,
        CheckpointDataset.dataset_id.in_(wanted),
        ~CheckpointDataset.forgotten,
    )
    return set(session.scalars(held)) == wanted


def record(session: Session, lease: jobs.Lease, report: dict[str, Any], bundle_key: str) -> None:
    """End an audit job with its report and the object that its pictures are drawn from.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job: Job = jobs.succeed(session, lease)
    audit = session.get_one(Audit, job.params["audit_id"])
    audit.report = report
    audit.objects = {BUNDLE: bundle_key}
    orphans.named(session, [bundle_key])


def bundle_key(audit: Audit) -> str | None:
    """Key of the object that the audit's pictures are drawn from; none before it has succeeded."""
    key: str | None = (audit.objects or {}).get(BUNDLE)
    return key
