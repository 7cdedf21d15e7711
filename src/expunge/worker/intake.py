"""Jobs that look at what came in: sealing a data set, verifying an uploaded checkpoint."""

from pathlib import Path
from typing import Any

from expunge.formats.shards import SampleRecord, ShardError, index_shard
from expunge.registry import datasets, models
from expunge.registry.jobs import Lease
from expunge.registry.objects import put_bytes
from expunge.registry.tables import Checkpoint, Dataset, Job
from expunge.worker.context import Context
from expunge.worker.staging import stage_checkpoint, stage_shard


def seal(context: Context, lease: Lease) -> None:
    """Decode every sample of a data set; fix its digest and index, or note the first thing wrong."""
    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        dataset = session.get_one(Dataset, job.dataset_id)
    with context.scratch(lease.job_id) as folder:
        try:
            records = _index(context, dataset, folder)
        except _InvalidDataset as invalid:
            with context.sessions.begin() as session:
                datasets.record_invalid(session, lease, invalid.problem)
            return
        data, digest = datasets.encode_index(records)
        index_key = put_bytes(context.store, data, folder)
    with context.sessions.begin() as session:
        datasets.record_sealed(
            session, lease, digest=digest, index_key=index_key, samples=len(records)
        )


class _InvalidDataset(Exception):
    def __init__(self, code: str, detail: str, shard: str) -> None:
        super().__init__(detail)
        self.problem = {"code": code, "detail": detail, "shard": shard}


def _index(context: Context, dataset: Dataset, folder: Path) -> list[SampleRecord]:
    records: list[SampleRecord] = []
    home: dict[str, str] = {}
    for shard in dataset.shards:
        path = stage_shard(context.store, shard, folder)
        try:
            found = index_shard(path, shard.name)
        except ShardError as error:
            raise _InvalidDataset(error.code, str(error), shard.name) from error
        path.unlink()
        for record in found:
            if record.key in home:
                raise _InvalidDataset(
                    "duplicate-key",
                    f"key {record.key!r} is in {home[record.key]} already; keys are unique in a "
                    "data set",
                    shard.name,
                )
            home[record.key] = shard.name
        records += found
    return records


def verify(context: Context, lease: Lease) -> None:
    """Load an uploaded checkpoint; it becomes ready, or invalid with what does not fit."""
    # Imported here: only a worker that loads weights pays for torch.
    from expunge.unlearning import checkpoints  # noqa: PLC0415

    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        checkpoint = session.get_one(Checkpoint, job.checkpoint_id)
    problem: dict[str, Any] | None = None
    with context.scratch(lease.job_id) as folder:
        try:
            checkpoints.load(stage_checkpoint(context.store, checkpoint, folder))
        except checkpoints.CheckpointMismatch as error:
            problem = {"code": "checkpoint-mismatch", "detail": str(error)}
    with context.sessions.begin() as session:
        models.record_verified(session, lease, problem)
