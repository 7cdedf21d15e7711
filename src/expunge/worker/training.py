"""Supervision of one training job: stage its files, run its process, record its result under the lease."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.evidence.manifest import (
    MANIFEST_TYPE,
    Data,
    Environment,
    Manifest,
    Weights,
    data_root,
)
from expunge.formats.digests import sha256_file
from expunge.formats.tensors import write_release
from expunge.registry import (
    checkpoints,
    jobs,
    lineage,
    models,
    orphans,
    policies,
    spans,
    visibility,
)
from expunge.registry.checkpoints import StoredWeights
from expunge.registry.errors import DomainError
from expunge.registry.jobs import Lease
from expunge.registry.lifecycles import DatasetState
from expunge.registry.tables import Checkpoint, Dataset, Job, JobKind, Model, Party
from expunge.worker.context import Context
from expunge.worker.courier import Courier
from expunge.worker.leases import Held
from expunge.worker.staging import Stage
from expunge.worker.task import TrainingTask
from expunge.worker.versions import require_known
from expunge.worker.watching import JobFailed, Watch


def train(context: Context, held: Held) -> None:
    """Carry out a claimed pre-training or unlearning job, from its last snapshot if there is one.

    Raises:
        Stopped, JobFailed, LeaseLost, FromNewerVersion, and what `Held.patiently` raises: nothing of
        the attempt is recorded but its snapshots.
    """
    lease = held.lease
    plan = held.patiently(lambda: _plan(context, lease))
    require_known(plan.encoder, plan.params.get("method"), plan.params["params"])
    with context.scratch(lease.job_id) as folder:
        courier = Courier(context, held, folder)
        held.afterwards.append(courier.tidy)
        with spans.phase("staging"):
            courier.bring(plan.snapshot_key)
            task = _stage(context, plan, Stage(context.store, held, folder), courier)
        metrics = Watch(context, held, folder, courier).run(
            task, limit_seconds=plan.limit_seconds, seconds_used=plan.seconds_used
        )
        result = Path(task.result)
        with spans.phase("recording"):
            held.patiently(lambda: _record(context, lease, plan, result, metrics))


@dataclass(frozen=True)
class _Plan:
    """What the database says of a job when its attempt starts."""

    encoder: dict[str, Any]
    params: dict[str, Any]
    retain: list[Dataset]
    unlearn: list[Dataset]
    base: Checkpoint | None
    snapshot_key: str | None
    limit_seconds: float
    seconds_used: float
    recompute: bool


def _plan(context: Context, lease: Lease) -> _Plan:
    with context.sessions() as session:
        job = session.get_one(Job, lease.job_id)
        model = session.get_one(Model, job.model_id)
        base = None
        unlearn_ids: set[str] = set()
        if lease.kind == JobKind.UNLEARN:
            base = session.get_one(Checkpoint, job.base_checkpoint_id)
            unlearn_ids = lineage.to_forget(session, job, base)
            retain_ids = set(base.retained) - unlearn_ids - lineage.pending(session, job)
            retain_ids &= _usable(session, model, retain_ids)
        else:
            retain_ids = set(job.params["dataset_ids"])
            _check_consent(session, model, job.params["dataset_ids"])

        def read(ids: set[str]) -> list[Dataset]:
            return list(session.scalars(select(Dataset).where(Dataset.id.in_(ids))))

        return _Plan(
            encoder=model.encoder,
            params=job.params,
            retain=read(retain_ids),
            unlearn=read(unlearn_ids),
            base=base,
            snapshot_key=job.snapshot_key,
            limit_seconds=_limit_seconds(context, model),
            seconds_used=job.seconds_used,
            recompute=jobs.recomputes(job),
        )


def _usable(session: Session, model: Model, dataset_ids: set[str]) -> set[str]:
    """Those of the data sets that are there, and that the model's owner owns or is still granted."""
    owner = session.get_one(Party, model.owner_id)
    rows = visibility.datasets(owner).where(
        Dataset.id.in_(dataset_ids), Dataset.state == DatasetState.SEALED
    )
    return {row.id for row in session.scalars(rows)}


def _check_consent(session: Session, model: Model, dataset_ids: list[str]) -> None:
    """A grant may have been withdrawn, or removal asked for, while the job was waiting."""
    owner = session.get_one(Party, model.owner_id)
    try:
        models.check_training_data(session, owner, model, dataset_ids)
    except DomainError as error:
        raise JobFailed.refused(
            "a data set may not be trained on any more", error.detail
        ) from error


def _limit_seconds(context: Context, model: Model) -> float:
    own, operators = (
        policies.of(model.policy).time_limit_seconds,
        context.settings.job_time_limit_seconds,
    )
    return operators if own is None else min(own, operators)


def _stage(context: Context, plan: _Plan, stage: Stage, courier: Courier) -> TrainingTask:
    return TrainingTask(
        encoder=plan.encoder,
        method=plan.params.get("method"),
        params=plan.params["params"],
        seed=plan.params["seed"],
        device=context.settings.device.partition(":")[0],
        retain_shards=[str(path) for path in stage.datasets(plan.retain)],
        unlearn_shards=[str(path) for path in stage.datasets(plan.unlearn)],
        base=None if plan.base is None else str(stage.checkpoint(plan.base)),
        result=str(stage.folder / "result.safetensors"),
        snapshot=str(courier.path),
        snapshot_seconds=context.settings.snapshot_seconds,
        recompute=plan.recompute,
    )


def _manifest(
    kind: JobKind, plan: _Plan, weights: StoredWeights, environment: dict[str, Any]
) -> Manifest:
    retain, unlearn = _data(plan.retain), _data(plan.unlearn)
    return Manifest(
        type=MANIFEST_TYPE,
        kind="pretrain" if kind == JobKind.PRETRAIN else "unlearn",
        encoder=plan.encoder,
        method=plan.params.get("method"),
        params=plan.params["params"],
        seed=str(plan.params["seed"]),
        retain=retain,
        unlearn=unlearn,
        data_root=data_root(retain + unlearn),
        base=None if plan.base is None else _weights(plan.base),
        result=_weights(weights),
        environment=Environment.model_validate(environment),
    )


def _data(datasets: list[Dataset]) -> list[Data]:
    """In the order in which they are staged."""
    return [
        Data(dataset_id=each.id, digest=str(each.digest), samples=each.samples)
        for each in sorted(datasets, key=lambda each: each.id)
    ]


def _weights(stored: Checkpoint | StoredWeights) -> Weights:
    return Weights(digest=stored.digest, release_digest=stored.release_digest)


def _store(context: Context, lease: Lease, result: Path) -> StoredWeights:
    release = result.with_name("release.safetensors")
    write_release(result, release)
    digest, release_digest = sha256_file(result), sha256_file(release)

    def put(path: Path, sha256: str) -> str:
        return orphans.put(context.sessions, context.store, path, sha256, lease=lease)

    return StoredWeights(
        digest=f"sha256:{digest}",
        object_key=put(result, digest),
        bytes=result.stat().st_size,
        release_digest=f"sha256:{release_digest}",
        release_key=put(release, release_digest),
    )


def _record(
    context: Context, lease: Lease, plan: _Plan, result: Path, metrics: dict[str, Any]
) -> None:
    weights = _store(context, lease, result)
    measured = {name: value for name, value in metrics.items() if name != "environment"}
    manifest = _manifest(lease.kind, plan, weights, metrics["environment"])
    metrics = measured | {"manifest": manifest.model_dump(mode="json")}
    with context.sessions.begin() as session:
        if lease.kind == JobKind.PRETRAIN:
            checkpoints.record_pretrained(session, lease, weights, metrics)
        else:
            checkpoints.record_unlearned(session, lease, weights, metrics)
