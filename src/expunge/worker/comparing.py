"""Supervision of one comparison: stage its files, run its process, record its tables under the lease.

Never writes a checkpoint: what the methods made is gone when the process ends.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.formats.digests import sha256_file
from expunge.registry import comparisons, jobs, orphans
from expunge.registry.errors import DomainError
from expunge.registry.jobs import Lease
from expunge.registry.tables import Checkpoint, Comparison, Dataset, Job, Model
from expunge.worker import oracles
from expunge.worker.context import Context
from expunge.worker.leases import Held
from expunge.worker.staging import Stage
from expunge.worker.task import ComparisonTask
from expunge.worker.versions import require_known
from expunge.worker.watching import JobFailed, Watch


def compare(context: Context, held: Held) -> None:
    """Carry out a claimed comparison.

    Raises:
        Stopped, JobFailed, LeaseLost, FromNewerVersion, and what `Held.patiently` raises: nothing is
        recorded.
    """
    lease = held.lease
    plan = held.patiently(lambda: _plan(context, lease))
    with context.scratch(lease.job_id) as folder:
        task = _stage(context, plan, Stage(context.store, held, folder))
        try:
            Watch(context, held, folder).run(
                task, limit_seconds=context.settings.job_time_limit_seconds
            )
        finally:
            oracles.keep_newest(context)
        held.patiently(lambda: _record(context, lease, Path(task.results)))


@dataclass(frozen=True)
class _Plan:
    """What the database says of a comparison when it starts."""

    settings: dict[str, Any]
    base: Checkpoint
    retain: list[Dataset]
    forget: list[Dataset]
    test: list[Dataset]
    recompute: bool


def _plan(context: Context, lease: Lease) -> _Plan:
    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        row = session.get_one(Comparison, job.params["comparison_id"])
        encoder = session.get_one(Model, row.model_id).encoder
        for each in row.settings["candidates"]:
            require_known(encoder, each["method"], each["params"])

        def read(ids: Iterable[str]) -> list[Dataset]:
            rows = select(Dataset).where(Dataset.id.in_(ids)).order_by(Dataset.id)
            return list(session.scalars(rows))

        return _Plan(
            settings=row.settings,
            base=session.get_one(Checkpoint, row.checkpoint_id),
            retain=read(_retained(session, row)),
            forget=read(row.settings["dataset_ids"]),
            test=read([row.settings["control_dataset_id"]]),
            recompute=jobs.recomputes(job),
        )


def _stage(context: Context, plan: _Plan, stage: Stage) -> ComparisonTask:
    results = stage.folder / "results"
    results.mkdir()

    def staged(datasets: list[Dataset]) -> dict[str, list[str]]:
        return {each.id: [str(path) for path in stage.datasets([each])] for each in datasets}

    return ComparisonTask(
        settings=plan.settings,
        device=context.settings.device.partition(":")[0],
        retain_shards=staged(plan.retain),
        unlearn_shards=staged(plan.forget),
        test_shards=staged(plan.test),
        base=str(stage.checkpoint(plan.base)),
        oracles=str(oracles.folder_of(context, plan.base.id)),
        results=str(results),
        recompute=plan.recompute,
    )


def _record(context: Context, lease: Lease, results: Path) -> None:
    objects = {
        path.name: orphans.put(
            context.sessions, context.store, path, sha256_file(path), lease=lease
        )
        for path in sorted(results.iterdir())
    }
    result = json.loads((results / "table.json").read_text())
    with context.sessions.begin() as session:
        comparisons.record(session, lease, result, objects)


def _retained(session: Session, row: Comparison) -> list[str]:
    """A grant may have been withdrawn, or removal asked for, while the job was waiting."""
    model, asked = session.get_one(Model, row.model_id), row.settings
    try:
        comparisons.check_test_set(session, model, asked["control_dataset_id"])
        return comparisons.retained(session, model, row.checkpoint_id, asked["dataset_ids"])
    except DomainError as error:
        raise JobFailed.refused("a data set may not be used any more", error.detail) from error
