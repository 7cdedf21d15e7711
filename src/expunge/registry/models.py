"""Models: creation, policy, control images, training of fresh weights. Never touches weights."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from expunge.registry import datasets, idempotency, jobs, log, policies, waiting
from expunge.registry.errors import AlreadyForgotten, Conflict, Invalid, NotFound
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.policies import Policy
from expunge.registry.tables import (
    Checkpoint,
    CheckpointDataset,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
)
from expunge.unlearning.catalog import EncoderSpec, PretrainParams, pretrain_params


def create(
    session: Session,
    owner: Party,
    name: str,
    encoder: EncoderSpec,
    *,
    policy: Policy,
    control_dataset_id: str | None,
    idempotency_key: str | None = None,
) -> Model:
    """Add a model without weights; with the key and content of an earlier call, that call's one.

    Raises:
        IdempotencyConflict: the key was used with other content.
        Conflict: the owner has one of that name.
        NotFound, NotSealed: the control data set cannot be used.
    """
    model_id = new_id(Prefix.MODEL)
    call = idempotency.Call(
        owner.id,
        idempotency_key,
        "create-model",
        [name, encoder.model_dump(mode="json"), policies.to_row(policy), control_dataset_id],
    )
    if earlier := idempotency.remember(session, call, model_id):
        return session.get_one(Model, earlier)
    if session.scalar(select(Model.id).where(Model.owner_id == owner.id, Model.name == name)):
        raise Conflict(f"You have a model named {name!r} already.")
    if control_dataset_id is not None:
        datasets.usable(session, owner, [control_dataset_id])
    model = Model(
        id=model_id,
        owner_id=owner.id,
        name=name,
        encoder=encoder.model_dump(mode="json"),
        policy=policies.to_row(policy),
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
    model.policy = policies.to_row(policies.of(model.policy | change))
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
    idempotency_key: str | None = None,
) -> Job:
    """Queue training of fresh weights on the union of data sets; what `params` leave unset is the framework's default.

    With the key and content of an earlier call, the answer is that call's job.

    Raises:
        IdempotencyConflict: the key was used with other content.
        NotFound, NotSealed: a data set cannot be used.
        Invalid: the list is empty or has doubles, or holds the model's control images.
        AlreadyForgotten: an owner asked this model to forget one of them.
    """
    job_id = new_id(Prefix.JOB)
    given = params.model_dump(mode="json", exclude_unset=True)
    call = idempotency.Call(
        owner.id, idempotency_key, "pretrain", [model_id, sorted(dataset_ids), given, seed]
    )
    if earlier := idempotency.remember(session, call, job_id):
        return session.get_one(Job, earlier)
    model = owned(session, owner, model_id)
    check_training_data(session, owner, model, dataset_ids)
    return waiting.enqueue(
        session,
        JobKind.PRETRAIN,
        actor=owner.id,
        owner_id=owner.id,
        job_id=job_id,
        model_id=model.id,
        params={
            "dataset_ids": list(dataset_ids),
            "params": pretrain_params(
                EncoderSpec.model_validate(model.encoder).framework,
                given,
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
