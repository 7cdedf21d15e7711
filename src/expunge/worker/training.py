"""Supervision of one training job: stage its files, run its process, record its result under the lease."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.formats.digests import sha256_file
from expunge.formats.tensors import write_release
from expunge.registry import models
from expunge.registry.errors import DomainError
from expunge.registry.jobs import Lease
from expunge.registry.models import StoredWeights
from expunge.registry.tables import Checkpoint, Dataset, Job, JobKind, Model, Party
from expunge.worker.context import Context
from expunge.worker.leases import kept_alive
from expunge.worker.staging import stage_checkpoint, stage_datasets
from expunge.worker.task import TrainingTask
from expunge.worker.watching import JobFailed, Watch


def train(context: Context, lease: Lease) -> None:
    """Carry out a claimed pre-training or unlearning job.

    Raises:
        Stopped, JobFailed, LeaseLost: nothing of the attempt is recorded.
    """
    with context.scratch(lease.job_id) as folder:
        with kept_alive(context, lease):
            task = _stage(context, lease, folder)
        metrics = Watch(context, lease, folder).run(task)
        with kept_alive(context, lease):
            weights = _store(context, Path(task.result), folder)
        with context.sessions.begin() as session:
            if lease.kind == JobKind.PRETRAIN:
                models.record_pretrained(session, lease, weights, metrics)
            else:
                models.record_unlearned(session, lease, weights, metrics)


def _stage(context: Context, lease: Lease, folder: Path) -> TrainingTask:
    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        model = session.get_one(Model, job.model_id)
        base = None
        unlearn_ids: set[str] = set()
        if lease.kind == JobKind.UNLEARN:
            base = session.get_one(Checkpoint, job.base_checkpoint_id)
            asked = {each for request in job.requests for each in request.dataset_ids}
            unlearn_ids = asked & set(base.retained)
            if not unlearn_ids:
                raise JobFailed("the model's head was replaced by one that never held this data")
            retain_ids = set(base.retained) - asked
        else:
            retain_ids = set(job.params["dataset_ids"])
            _check_consent(session, model, job.params["dataset_ids"])

        def stage(ids: set[str]) -> list[str]:
            rows = session.scalars(select(Dataset).where(Dataset.id.in_(ids))).all()
            return [str(path) for path in stage_datasets(context.store, rows, folder)]

        return TrainingTask(
            encoder=model.encoder,
            method=job.params.get("method"),
            params=job.params["params"],
            seed=job.params["seed"],
            device=context.settings.device,
            retain_shards=stage(retain_ids),
            unlearn_shards=stage(unlearn_ids),
            base=str(stage_checkpoint(context.store, base, folder)) if base else None,
            result=str(folder / "result.safetensors"),
        )


def _check_consent(session: Session, model: Model, dataset_ids: list[str]) -> None:
    """A grant may have been withdrawn, or removal asked for, while the job was waiting."""
    owner = session.get_one(Party, model.owner_id)
    try:
        models.check_training_data(session, owner, model, dataset_ids)
    except DomainError as error:
        raise JobFailed("a data set may not be trained on any more", error.detail) from error


def _store(context: Context, result: Path, folder: Path) -> StoredWeights:
    release = folder / "release.safetensors"
    write_release(result, release)
    digest, release_digest = sha256_file(result), sha256_file(release)
    return StoredWeights(
        digest=f"sha256:{digest}",
        object_key=context.store.put(result, digest),
        bytes=result.stat().st_size,
        release_digest=f"sha256:{release_digest}",
        release_key=context.store.put(release, release_digest),
    )
