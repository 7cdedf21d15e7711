"""Audit jobs: the owner's samples and the model's control through both encoders, kept warm between audits."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from sqlalchemy import select

from expunge.evidence.audit import AuditReport
from expunge.registry import audits, orphans
from expunge.registry.jobs import Lease
from expunge.registry.tables import Audit, Checkpoint, Dataset, Model
from expunge.unlearning import checkpoints
from expunge.unlearning.audit import audit
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.frameworks import Learner
from expunge.worker import pictures
from expunge.worker.context import Context
from expunge.worker.leases import Held
from expunge.worker.staging import Stage

WARM_LEARNERS = 4
WARM_CONTROLS = 2
MAX_CONTROL_IMAGES = 512
"""More control images hardly narrow the interval, which the owner's few samples dominate."""

Value = TypeVar("Value")


class _Warm(OrderedDict[str, Value]):
    """The last few values by key, the longest unused one dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def get_or_load(self, key: str, load: Callable[[], Value]) -> Value:
        if key not in self:
            self[key] = load()
            if len(self) > self._limit:
                self.popitem(last=False)
        self.move_to_end(key)
        return self[key]


class Auditor:
    """Runs audit jobs of one worker process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._learners: _Warm[Learner] = _Warm(WARM_LEARNERS)
        self._controls: _Warm[ImageSet] = _Warm(WARM_CONTROLS)

    def run(self, held: Held) -> None:
        """Compute the audit of a claimed job and record it."""
        context, lease = self._context, held.lease
        plan = held.patiently(lambda: _plan(context, lease))
        size = plan.image_size
        report = audit(
            self._learner(plan.before, held),
            self._learner(plan.after, held),
            self._own(plan.own, size, held),
            control=self._control(plan.control, size, held) if plan.control else None,
            views=plan.asked["views"],
            seed=plan.asked["seed"],
            matrix_size=plan.asked["matrix_size"],
            device=context.settings.device,
        )
        held.check()
        held.patiently(lambda: _record(context, lease, report, self._store(report, lease)))

    def _learner(self, checkpoint: Checkpoint, held: Held) -> Learner:
        def load() -> Learner:
            with self._context.scratch(checkpoint.id) as folder:
                stage = Stage(self._context.store, held, folder)
                return checkpoints.load(stage.checkpoint(checkpoint))

        return self._learners.get_or_load(checkpoint.digest, load)

    def _own(self, datasets: Sequence[Dataset], size: int, held: Held) -> ImageSet:
        """All samples; with several data sets, whose keys may be alike, keys name their data set."""
        if len(datasets) == 1:
            return self._images(datasets[0], size, held)
        sets = []
        for dataset in datasets:
            images = self._images(dataset, size, held)
            sets.append(replace(images, keys=[f"{dataset.id}/{key}" for key in images.keys]))
        return ImageSet.concat(sets)

    def _images(self, dataset: Dataset, size: int, held: Held) -> ImageSet:
        with self._context.scratch("audit") as folder:
            stage = Stage(self._context.store, held, folder)
            return load_shards(stage.datasets([dataset]), size)

    def _control(self, dataset: Dataset, size: int, held: Held) -> ImageSet:
        def load() -> ImageSet:
            images = self._images(dataset, size, held)
            # A fixed draw: every audit of a model is held against the same control.
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            return images.subset(order[:MAX_CONTROL_IMAGES].sort().values)

        return self._controls.get_or_load(f"{dataset.digest}@{size}", load)

    def _store(self, report: AuditReport, lease: Lease) -> dict[str, Any]:
        context = self._context
        with context.scratch(lease.job_id) as folder:

            def put(data: bytes) -> str:
                return orphans.put_bytes(context.sessions, context.store, data, folder, lease=lease)

            return {
                level: {
                    which: {
                        suffix: put(data)
                        for suffix, data in pictures.render(
                            which, level, matrices, report.matrix_keys
                        ).items()
                    }
                    for which in matrices
                }
                for level, matrices in report.matrices.items()
            }


@dataclass(frozen=True)
class _Plan:
    """What the database says of an audit when it starts."""

    asked: dict[str, Any]
    before: Checkpoint
    after: Checkpoint
    own: Sequence[Dataset]
    control: Dataset | None
    image_size: int


def _plan(context: Context, lease: Lease) -> _Plan:
    with context.sessions() as session:
        row = session.scalars(select(Audit).where(Audit.job_id == lease.job_id)).one()
        model = session.get_one(Model, row.before.model_id)
        own = select(Dataset).where(Dataset.id.in_(row.job.params["dataset_ids"]))
        control = model.control_dataset_id
        return _Plan(
            asked=row.job.params,
            before=row.before,
            after=row.after,
            own=session.scalars(own.order_by(Dataset.id)).all(),
            control=session.get_one(Dataset, control) if control else None,
            image_size=model.encoder["image_size"],
        )


def _record(context: Context, lease: Lease, report: AuditReport, objects: dict[str, Any]) -> None:
    with context.sessions.begin() as session:
        audits.record(session, lease, report.to_dict(), objects)
