"""Models and their checkpoints: creation, training jobs, uploads, results, promotion. Never touches weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry import datasets, jobs, lineage, log
from expunge.registry.errors import AlreadyForgotten, Conflict, Invalid, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import CheckpointState, JobState, RequestState
from expunge.registry.tables import (
    TRAINING_KINDS,
    Checkpoint,
    CheckpointDataset,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
)
from expunge.registry.transitions import move
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, pretrain_params

MAX_BATCH_WINDOW_SECONDS = 86_400


class Policy(BaseModel):
    """How a model treats removal requests."""

    model_config = ConfigDict(extra="forbid")

    batch_window_seconds: float = Field(
        default=0,
        ge=0,
        le=MAX_BATCH_WINDOW_SECONDS,
        description="Requests with the same method and parameters that arrive within this time "
        "of the first one become one job.",
    )
    promotion: Literal["automatic", "manual"] = Field(
        default="automatic",
        description="Whether a result becomes the model's head by itself.",
    )


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """A checkpoint's file and its releasable part, both in the object store already."""

    digest: str
    object_key: str
    bytes: int
    release_digest: str
    release_key: str


def create(
    session: Session,
    owner: Party,
    name: str,
    encoder: EncoderSpec,
    *,
    policy: Policy,
    control_dataset_id: str | None,
) -> Model:
    """Add a model without weights.

    Raises:
        Conflict: the owner has one of that name.
        NotFound, NotSealed: the control data set cannot be used.
    """
    if session.scalar(select(Model.id).where(Model.owner_id == owner.id, Model.name == name)):
        raise Conflict(f"You have a model named {name!r} already.")
    if control_dataset_id is not None:
        datasets.usable(session, owner, [control_dataset_id])
    model = Model(
        id=new_id(Prefix.MODEL),
        owner_id=owner.id,
        name=name,
        encoder=encoder.model_dump(mode="json"),
        policy=policy.model_dump(),
        control_dataset_id=control_dataset_id,
    )
    session.add(model)
    session.flush()
    log.append(session, owner.id, model.id, "created", framework=encoder.framework)
    return model


def owned(session: Session, owner: Party, model_id: str) -> Model:
    """A model of this owner, row-locked: training, requests and promotion of one model take turns.

    Raises:
        NotFound: there is none, or it belongs to another party.
    """
    model = session.scalar(
        select(Model).where(Model.id == model_id, Model.owner_id == owner.id).with_for_update()
    )
    if model is None:
        raise NotFound.of("model", model_id)
    return model


def change_policy(session: Session, owner: Party, model_id: str, change: dict[str, Any]) -> Model:
    """Replace the given parts of a model's policy; jobs that are queued already keep their window."""
    model = owned(session, owner, model_id)
    model.policy = Policy.model_validate(model.policy | change).model_dump()
    log.append(session, owner.id, model.id, "policy-changed", policy=model.policy)
    return model


def set_control(session: Session, owner: Party, model_id: str, dataset_id: str) -> Model:
    """Name the control images of later audits.

    Raises:
        Invalid: the model was trained on them, so they are no control.
    """
    model = owned(session, owner, model_id)
    datasets.usable(session, owner, [dataset_id])
    trained = select(CheckpointDataset.dataset_id).join(
        Checkpoint, Checkpoint.id == CheckpointDataset.checkpoint_id
    )
    if session.scalar(
        trained.where(
            Checkpoint.model_id == model.id, CheckpointDataset.dataset_id == dataset_id
        ).limit(1)
    ):
        raise Invalid(f"Model {model.id} was trained on data set {dataset_id}: it is no control.")
    coming = session.scalars(
        select(Job.params).where(
            Job.model_id == model.id,
            Job.kind == JobKind.PRETRAIN,
            Job.state.in_((JobState.QUEUED, *jobs.LIVE_STATES)),
        )
    )
    if any(dataset_id in params["dataset_ids"] for params in coming):
        raise Invalid(f"A job is about to train on data set {dataset_id}: it is no control.")
    model.control_dataset_id = dataset_id
    log.append(session, owner.id, model.id, "control-set", dataset_id=dataset_id)
    return model


def start_pretraining(
    session: Session,
    owner: Party,
    model_id: str,
    dataset_ids: Sequence[str],
    params: PretrainParams,
    *,
    seed: int,
) -> Job:
    """Queue training of fresh weights on the union of data sets; what `params` leave unset is the framework's default.

    Raises:
        NotFound, NotSealed: a data set cannot be used.
        Invalid: the list is empty or has doubles, or holds the model's control images.
        AlreadyForgotten: an owner asked this model to forget one of them.
    """
    model = owned(session, owner, model_id)
    check_training_data(session, owner, model, dataset_ids)
    return jobs.enqueue(
        session,
        JobKind.PRETRAIN,
        actor=owner.id,
        model_id=model.id,
        params={
            "dataset_ids": list(dataset_ids),
            "params": pretrain_params(
                EncoderSpec.model_validate(model.encoder).framework,
                params.model_dump(exclude_unset=True),
            ).model_dump(mode="json"),
            "seed": seed,
        },
    )


def check_training_data(
    session: Session, owner: Party, model: Model, dataset_ids: Sequence[str]
) -> None:
    """Raise unless a checkpoint of the model may be trained on these data sets (see start_pretraining)."""
    check_distinct(dataset_ids)
    datasets.usable(session, owner, dataset_ids)
    if model.control_dataset_id in dataset_ids:
        raise Invalid(
            f"Data set {model.control_dataset_id} is the model's control: it must never be "
            "trained on."
        )
    unwanted = session.scalars(
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(
            Request.model_id == model.id,
            RequestDataset.dataset_id.in_(dataset_ids),
            Request.state.not_in(
                (RequestState.CANCELLED, RequestState.REJECTED, RequestState.FAILED)
            ),
        )
    ).all()
    if unwanted:
        raise AlreadyForgotten(
            f"Model {model.id} was asked to forget {', '.join(sorted(set(unwanted)))}; "
            "it must not be trained on them again."
        )


def check_distinct(dataset_ids: Sequence[str]) -> None:
    """Raise Invalid for an empty list or one with doubles."""
    if not dataset_ids:
        raise Invalid("dataset_ids is empty; name at least one data set.")
    if len(set(dataset_ids)) != len(dataset_ids):
        raise Invalid("dataset_ids names a data set twice.")


def add_upload(
    session: Session,
    owner: Party,
    model_id: str,
    dataset_ids: Sequence[str],
    weights: StoredWeights,
) -> Checkpoint:
    """Record an uploaded checkpoint and have a worker check it against its header."""
    model = owned(session, owner, model_id)
    check_training_data(session, owner, model, dataset_ids)
    checkpoint = _add(session, model.id, weights, CheckpointState.CHECKING)
    _note_datasets(session, checkpoint, dict.fromkeys(dataset_ids, False))
    log.append(session, owner.id, checkpoint.id, "uploaded", digest=weights.digest)
    jobs.enqueue(session, JobKind.VERIFY, actor=owner.id, params={}, checkpoint_id=checkpoint.id)
    return checkpoint


def record_verified(session: Session, lease: jobs.Lease, problem: dict[str, Any] | None) -> None:
    """End a verify job: the upload is ready (and the model's head if it has none), or invalid.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = jobs.succeed(session, lease)
    checkpoint = session.get_one(Checkpoint, job.checkpoint_id)
    if problem is not None:
        move(session, checkpoint, CheckpointState.INVALID, problem=problem)
        return
    move(session, checkpoint, CheckpointState.READY)
    model = session.get_one(Model, checkpoint.model_id, with_for_update=True)
    if model.head_checkpoint_id is None:
        _set_head(session, model, checkpoint, log.SERVICE)


def record_pretrained(
    session: Session, lease: jobs.Lease, weights: StoredWeights, metrics: dict[str, Any]
) -> Checkpoint:
    """End a pre-training job with its checkpoint; it becomes the head if the policy says so.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = session.get_one(Job, lease.job_id)
    model = session.get_one(Model, job.model_id, with_for_update=True)
    checkpoint = _add(session, model.id, weights, CheckpointState.READY, job_id=job.id)
    _note_datasets(session, checkpoint, dict.fromkeys(job.params["dataset_ids"], False))
    jobs.succeed(session, lease, metrics=metrics, result_checkpoint_id=checkpoint.id)
    log.append(session, log.SERVICE, checkpoint.id, "trained", digest=weights.digest)
    if model.head_checkpoint_id is None or model.policy["promotion"] == "automatic":
        _set_head(session, model, checkpoint, log.SERVICE)
    return checkpoint


def record_unlearned(
    session: Session, lease: jobs.Lease, weights: StoredWeights, metrics: dict[str, Any]
) -> Checkpoint:
    """End an unlearning job: its checkpoint, its requests completed, promoted if the policy says so.

    Raises:
        LeaseLost: the job was given away; the caller's transaction rolls back.
    """
    job = session.get_one(Job, lease.job_id)
    model = session.get_one(Model, job.model_id, with_for_update=True)
    base = session.get_one(Checkpoint, job.base_checkpoint_id)
    checkpoint = _add(
        session, model.id, weights, CheckpointState.READY, parent_id=base.id, job_id=job.id
    )
    forgotten = set(base.forgotten).union(*(request.dataset_ids for request in job.requests))
    _note_datasets(session, checkpoint, {each: each in forgotten for each in base.trained_on})
    jobs.succeed(session, lease, metrics=metrics, result_checkpoint_id=checkpoint.id)
    log.append(session, log.SERVICE, checkpoint.id, "unlearned", digest=weights.digest)
    for request in job.requests:
        move(session, request, RequestState.COMPLETED)
    if model.policy["promotion"] == "automatic" and lineage.descends(
        session, checkpoint, model.head_checkpoint_id
    ):
        _set_head(session, model, checkpoint, log.SERVICE)
    return checkpoint


def promote(session: Session, owner: Party, checkpoint_id: str) -> Model:
    """Make a checkpoint its model's head.

    Raises:
        NotFound: not a checkpoint of an own model.
        Conflict: it is not ready, it holds data that was forgotten on request, or a job of the
            model is running, whose result belongs to the present head.
    """
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise NotFound.of("checkpoint", checkpoint_id)
    try:
        model = owned(session, owner, checkpoint.model_id)
    except NotFound as error:
        raise NotFound.of("checkpoint", checkpoint_id) from error
    if checkpoint.state != CheckpointState.READY:
        raise Conflict(f"Checkpoint {checkpoint.id} is {checkpoint.state}.", state=checkpoint.state)
    if session.scalar(
        select(Job.id).where(
            Job.model_id == model.id,
            Job.state.in_(jobs.LIVE_STATES),
            Job.kind.in_(TRAINING_KINDS),
        )
    ):
        raise Conflict(f"A job of model {model.id} is running; promote when it has ended.")
    if back := _brought_back(session, model, checkpoint):
        raise Conflict(
            f"Checkpoint {checkpoint.id} still holds data that was forgotten on request: "
            f"{', '.join(back)}.",
            dataset_ids=back,
        )
    _set_head(session, model, checkpoint, owner.id)
    return model


def _brought_back(session: Session, model: Model, checkpoint: Checkpoint) -> list[str]:
    """Data sets that the checkpoint holds although a completed request was about them."""
    asked = session.scalars(
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(Request.model_id == model.id, Request.state == RequestState.COMPLETED)
    )
    return sorted(set(asked) & set(checkpoint.retained))


def _set_head(session: Session, model: Model, checkpoint: Checkpoint, actor: str) -> None:
    model.head_checkpoint_id = checkpoint.id
    session.flush()
    log.append(session, actor, model.id, "promoted", checkpoint_id=checkpoint.id)


def _add(
    session: Session, model_id: str, weights: StoredWeights, state: CheckpointState, **values: Any
) -> Checkpoint:
    checkpoint = Checkpoint(
        id=new_id(Prefix.CHECKPOINT),
        model_id=model_id,
        state=state,
        **asdict(weights),
        **values,
    )
    session.add(checkpoint)
    session.flush()
    return checkpoint


def _note_datasets(session: Session, checkpoint: Checkpoint, forgotten: dict[str, bool]) -> None:
    session.add_all(
        CheckpointDataset(checkpoint_id=checkpoint.id, dataset_id=each, forgotten=is_forgotten)
        for each, is_forgotten in forgotten.items()
    )
    session.flush()
    session.expire(checkpoint, ["datasets"])
