"""Jobs that look at what came in: sealing a data set, verifying an uploaded checkpoint."""

from pathlib import Path
from typing import Any

from expunge.formats.archives import ShardError
from expunge.formats.digests import sha256_file
from expunge.formats.shards import SampleRecord, index_shard
from expunge.registry import datasets, orphans
from expunge.registry.checkpoints import record_verified
from expunge.registry.tables import Checkpoint, Dataset, Job
from expunge.worker.context import Context
from expunge.worker.leases import Held
from expunge.worker.staging import Stage


def seal(context: Context, held: Held) -> None:
    """Decode every sample of a data set; fix its digest and index, or note the first thing wrong."""
    dataset = held.patiently(lambda: _dataset(context, held))
    with context.scratch(held.lease.job_id) as folder:
        try:
            records = _index(Stage(context.store, held, folder), dataset, held)
        except _InvalidDataset as error:
            invalid = error
            held.patiently(lambda: _record_invalid(context, held, invalid.problem))
            return
        data, digest = datasets.encode_index(records)
        index = folder / "index"
        index.write_bytes(data)
        held.patiently(lambda: _record_sealed(context, held, index, digest, len(records)))


def _dataset(context: Context, held: Held) -> Dataset:
    with context.sessions() as session:
        job = session.get_one(Job, held.lease.job_id)
        return session.get_one(Dataset, job.dataset_id)


def _record_sealed(context: Context, held: Held, index: Path, digest: str, samples: int) -> None:
    lease = held.lease
    key = orphans.put(context.sessions, context.store, index, sha256_file(index), lease=lease)
    with context.sessions.begin() as session:
        datasets.record_sealed(session, lease, digest=digest, index_key=key, samples=samples)


def _record_invalid(context: Context, held: Held, problem: dict[str, Any]) -> None:
    with context.sessions.begin() as session:
        datasets.record_invalid(session, held.lease, problem)


class _InvalidDataset(Exception):
    def __init__(self, code: str, detail: str, shard: str) -> None:
        super().__init__(detail)
        self.problem = {"code": code, "detail": detail, "shard": shard}


def _index(stage: Stage, dataset: Dataset, held: Held) -> list[SampleRecord]:
    records: list[SampleRecord] = []
    home: dict[str, str] = {}
    for shard in dataset.shards:
        held.check()
        path = stage.shard(shard)
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


def verify(context: Context, held: Held) -> None:
    """Look at an uploaded checkpoint's tensors; it becomes ready, or invalid with what does not fit."""
    # Imported here: only a worker that loads weights pays for torch.
    from expunge.unlearning import checkpoints  # noqa: PLC0415

    checkpoint = held.patiently(lambda: _checkpoint(context, held))
    problem: dict[str, Any] | None = None
    with context.scratch(held.lease.job_id) as folder:
        path = Stage(context.store, held, folder).checkpoint(checkpoint)
        try:
            checkpoints.check(path)
        except checkpoints.CheckpointMismatch as error:
            problem = {"code": "checkpoint-mismatch", "detail": str(error)}
    held.patiently(lambda: _record_verified(context, held, problem))


def _checkpoint(context: Context, held: Held) -> Checkpoint:
    with context.sessions() as session:
        job = session.get_one(Job, held.lease.job_id)
        return session.get_one(Checkpoint, job.checkpoint_id)


def _record_verified(context: Context, held: Held, problem: dict[str, Any] | None) -> None:
    with context.sessions.begin() as session:
        record_verified(session, held.lease, problem)
