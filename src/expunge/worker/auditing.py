"""Audit jobs: the owner's samples and the model's control through both encoders, kept warm between audits."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from sqlalchemy import select

from expunge.registry import audits
from expunge.registry.jobs import Lease
from expunge.registry.objects import put_bytes
from expunge.registry.tables import Audit, Checkpoint, Dataset, Model
from expunge.unlearning import checkpoints
from expunge.unlearning.audit import audit
from expunge.unlearning.audit_report import AuditReport
from expunge.unlearning.data.image_set import ImageSet, load_shards
from expunge.unlearning.frameworks import Learner
from expunge.worker import pictures
from expunge.worker.context import Context
from expunge.worker.staging import stage_checkpoint, stage_datasets

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

    def run(self, lease: Lease) -> None:
        """Compute the audit of a claimed job and record it."""
        with self._context.sessions() as session:
            row = session.scalars(select(Audit).where(Audit.job_id == lease.job_id)).one()
            asked = row.job.params
            before, after = row.before, row.after
            model = session.get_one(Model, before.model_id)
            own = session.scalars(
                select(Dataset).where(Dataset.id.in_(asked["dataset_ids"])).order_by(Dataset.id)
            ).all()
            control = (
                session.get_one(Dataset, model.control_dataset_id)
                if model.control_dataset_id
                else None
            )
            size = model.encoder["image_size"]
        report = audit(
            self._learner(before),
            self._learner(after),
            self._own(own, size),
            self._control(control, size) if control else None,
            views=asked["views"],
            seed=asked["seed"],
            matrix_size=asked["matrix_size"],
            device=self._context.settings.device,
        )
        objects = self._store(report, lease.job_id)
        with self._context.sessions.begin() as session:
            audits.record(session, lease, report.to_dict(), objects)

    def _learner(self, checkpoint: Checkpoint) -> Learner:
        def load() -> Learner:
            with self._context.scratch(checkpoint.id) as folder:
                return checkpoints.load(stage_checkpoint(self._context.store, checkpoint, folder))

        return self._learners.get_or_load(checkpoint.digest, load)

    def _own(self, datasets: Sequence[Dataset], size: int) -> ImageSet:
        """All samples; with several data sets, whose keys may be alike, keys name their data set."""
        if len(datasets) == 1:
            return self._images(datasets[0], size)
        sets = []
        for dataset in datasets:
            images = self._images(dataset, size)
            sets.append(replace(images, keys=[f"{dataset.id}/{key}" for key in images.keys]))
        return ImageSet.concat(sets)

    def _images(self, dataset: Dataset, size: int) -> ImageSet:
        with self._context.scratch("audit") as folder:
            return load_shards(stage_datasets(self._context.store, [dataset], folder), size)

    def _control(self, dataset: Dataset, size: int) -> ImageSet:
        def load() -> ImageSet:
            images = self._images(dataset, size)
            # A fixed draw: every audit of a model is held against the same control.
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            return images.subset(order[:MAX_CONTROL_IMAGES].sort().values)

        return self._controls.get_or_load(f"{dataset.digest}@{size}", load)

    def _store(self, report: AuditReport, name: str) -> dict[str, Any]:
        with self._context.scratch(name) as folder:
            return {
                level: {
                    which: {
                        suffix: put_bytes(self._context.store, data, folder)
                        for suffix, data in pictures.render(
                            which, level, matrices, report.matrix_keys
                        ).items()
                    }
                    for which in matrices
                }
                for level, matrices in report.matrices.items()
            }
