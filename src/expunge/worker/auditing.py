"""Audit jobs: the owner's samples held against samples of others, and the report and pictures' data recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import joinedload, lazyload

from expunge.evidence.audit import AuditReport, Level, Outputs, audit
from expunge.evidence.manifest import code
from expunge.evidence.pictures.bundle import Bundle, Matrix, pack, thumbnails
from expunge.evidence.subset import subset_digest
from expunge.registry import access, audits, orphans
from expunge.registry.jobs import Failure, Lease
from expunge.registry.subsets import Chosen, Subset
from expunge.registry.tables import Audit, Checkpoint, Dataset
from expunge.worker.context import Context
from expunge.worker.encoders import Encoders, Pair
from expunge.worker.leases import Held
from expunge.worker.watching import JobFailed

NOT_DELEGATED = Failure("refused", "the data sets are not delegated to who asked any more")


@dataclass(frozen=True)
class Plan:
    """One audit: what is compared, of which samples, for whom."""

    pair: Pair
    subset: Subset
    datasets: Sequence[Dataset]
    owner_id: str
    """Whose samples they are: none of this party's is among those that they are held against."""
    matrix_size: int
    held_before: bool
    """Whether the encoder before was trained on all of them and had not forgotten them."""


@dataclass(frozen=True)
class Finding:
    """An audit's answer, not recorded yet."""

    report: dict[str, Any]
    bundle: bytes
    """What its pictures are drawn from, see `evidence.pictures.bundle`."""
    own: Mapping[Level, Outputs]


class Auditor:
    """Runs audits of one worker process."""

    def __init__(self, context: Context, encoders: Encoders) -> None:
        self._context = context
        self._encoders = encoders

    def run(self, held: Held) -> None:
        """Compute the audit of a claimed job and record it."""
        context, lease = self._context, held.lease
        plan = held.patiently(lambda: _asked(context, lease))
        finding = self.find(plan, held)
        held.check()
        held.patiently(partial(self._record, lease, finding))

    def find(self, plan: Plan, held: Held) -> Finding:
        """Compute an audit.

        Raises:
            JobFailed: weights were destroyed, samples deleted, or there are none.
            ObjectMissing, ObjectDamaged, and what `Held.patiently` raises.
        """
        encoders, pair = self._encoders, plan.pair
        chosen = encoders.choose(plan.subset, plan.datasets, held)
        own = encoders.outputs(pair, chosen, held)
        report = audit(
            own,
            [each.name for each in chosen],
            encoders.retained(pair, plan.owner_id, held),
            encoders.control(pair, held),
            seed=pair.seed,
            matrix_size=plan.matrix_size,
            held_before=plan.held_before,
        )
        bundle = self._bundle(plan, report, chosen, held)
        return Finding(report.to_dict() | {"protocol": _protocol(plan, chosen)}, bundle, own)

    def _bundle(
        self, plan: Plan, report: AuditReport, chosen: Sequence[Chosen], held: Held
    ) -> bytes:
        encoders, by_name = self._encoders, {each.name: each for each in chosen}
        shown = [by_name[key] for key in report.matrix_keys]
        spec = encoders.learner(plan.pair.before, held).spec
        images = np.concatenate(
            [batch.images.numpy() for batch in encoders.images.read(held, shown, spec)]
        )
        pixels = thumbnails(images.transpose(0, 2, 3, 1))
        matrices: dict[str, Mapping[str, Matrix]] = dict(report.matrices.items())
        return pack(Bundle(matrices, pixels, tuple(report.matrix_keys)))

    def _record(self, lease: Lease, finding: Finding) -> None:
        context = self._context
        with context.scratch(lease.job_id) as folder:
            key = orphans.put_bytes(
                context.sessions, context.store, finding.bundle, folder, lease=lease
            )
        with context.sessions.begin() as session:
            audits.record(session, lease, finding.report, key)


def _protocol(plan: Plan, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What somebody needs who repeats the audit, or doubts it."""
    pair = plan.pair
    return {
        "subset": {
            "samples": len(chosen),
            "digest": subset_digest(each.sha256 for each in chosen),
        },
        "views": pair.views,
        "seed": pair.seed,
        "matrix_size": plan.matrix_size,
        "before": pair.before.digest,
        "after": pair.after.digest,
        "code": code(),
    }


def _asked(context: Context, lease: Lease) -> Plan:
    """The audit that somebody asked for by this job.

    Raises:
        JobFailed: an auditor's delegation has ended since.
    """
    with context.readings() as session:
        sides = [
            joinedload(side).options(lazyload(Checkpoint.datasets))
            for side in (Audit.before, Audit.after)
        ]
        row = session.scalars(
            select(Audit).where(Audit.job_id == lease.job_id).options(*sides)
        ).one()
        asked = row.asked
        subset = Subset.of(asked)
        if row.party_id is not None:
            asker = access.Asker(row.party_id)
            if not access.covers(session, asker, row.request_id, subset.dataset_ids):
                raise JobFailed(NOT_DELEGATED)
        return Plan(
            pair=Pair(row.before, row.after, asked["views"], asked["seed"]),
            subset=subset,
            datasets=session.scalars(
                select(Dataset).where(Dataset.id.in_(subset.dataset_ids))
            ).all(),
            owner_id=row.owner_id,
            matrix_size=asked["matrix_size"],
            held_before=audits.held_before(session, row),
        )
