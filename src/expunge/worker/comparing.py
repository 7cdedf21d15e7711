"""Supervision of one comparison: stage its files, run its process, record its tables under the lease.

Never writes a checkpoint: what the methods made is gone when the process ends.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.formats.digests import sha256_file
from expunge.registry import comparisons
from expunge.registry.errors import DomainError
from expunge.registry.jobs import Lease
from expunge.registry.tables import Checkpoint, Comparison, Dataset, Job, Model
from expunge.worker import oracles
from expunge.worker.context import Context
from expunge.worker.leases import kept_alive
from expunge.worker.staging import stage_checkpoint, stage_datasets
from expunge.worker.task import ComparisonTask
from expunge.worker.watching import JobFailed, Watch


def compare(context: Context, lease: Lease) -> None:
    """Carry out a claimed comparison.

    Raises:
        Stopped, JobFailed, LeaseLost: nothing of the attempt is recorded.
    """
    with context.scratch(lease.job_id) as folder:
        with kept_alive(context, lease):
            task = _stage(context, lease, folder)
        try:
            Watch(context, lease, folder).run(task)
        finally:
            oracles.keep_newest(context)
        with kept_alive(context, lease):
            results = Path(task.results)
            objects = {
                path.name: context.store.put(path, sha256_file(path))
                for path in sorted(results.iterdir())
            }
        result = json.loads((results / "table.json").read_text())
        with context.sessions.begin() as session:
            comparisons.record(session, lease, result, objects)


def _stage(context: Context, lease: Lease, folder: Path) -> ComparisonTask:
    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        row = session.get_one(Comparison, job.params["comparison_id"])
        base = session.get_one(Checkpoint, row.checkpoint_id)
        forget = row.settings["dataset_ids"]
        retain = _retained(session, row)
        results = folder / "results"
        results.mkdir()

        def stage(ids: Iterable[str]) -> dict[str, list[str]]:
            rows = session.scalars(select(Dataset).where(Dataset.id.in_(ids)).order_by(Dataset.id))
            return {
                dataset.id: [str(path) for path in stage_datasets(context.store, [dataset], folder)]
                for dataset in rows
            }

        return ComparisonTask(
            settings=row.settings,
            device=context.settings.device,
            retain_shards=stage(retain),
            unlearn_shards=stage(forget),
            test_shards=stage([row.settings["control_dataset_id"]]),
            base=str(stage_checkpoint(context.store, base, folder)),
            oracles=str(oracles.folder_of(context, base.id)),
            results=str(results),
        )


def _retained(session: Session, row: Comparison) -> list[str]:
    """A grant may have been withdrawn, or removal asked for, while the job was waiting."""
    model, asked = session.get_one(Model, row.model_id), row.settings
    try:
        comparisons.check_test_set(session, model, asked["control_dataset_id"])
        return comparisons.retained(session, model, row.checkpoint_id, asked["dataset_ids"])
    except DomainError as error:
        raise JobFailed("a data set may not be used any more", error.detail) from error
