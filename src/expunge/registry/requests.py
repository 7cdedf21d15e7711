"""Removal requests: asked, approved, withdrawn, and how they become jobs. Never runs one."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, lazyload

from expunge.evidence.protocol import protocol
from expunge.registry import (
    datasets,
    idempotency,
    jobs,
    lifecycles,
    lineage,
    log,
    models,
    parameters,
    policies,
    retention,
    visibility,
    waiting,
)
from expunge.registry.errors import AlreadyForgotten, Conflict, NotFound, NotInTrainingData
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.tables import (
    CheckpointDataset,
    Dataset,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
)
from expunge.registry.transitions import StateChanged, add, move
from expunge.unlearning import catalog

WITHDRAWN = "withdrawn by its owner"


def create(
    session: Session,
    owner: Party,
    *,
    model_id: str,
    dataset_ids: Sequence[str],
    method: str,
    params: dict[str, Any],
    idempotency_key: str | None = None,
) -> Request:
    """Accept a removal request: durable when the transaction commits, part of a job if the policy approves by itself.

    A call with the key and content of an earlier one returns the earlier request.

    Raises:
        IdempotencyConflict: the key was used for another request.
        NotFound: a data set is not the caller's, or the model was not trained on any of theirs.
        Invalid, UnknownMethod, InvalidParameters, NotInTrainingData, NotSealed, DatasetDeleted,
        AlreadyForgotten, Conflict: see each; nothing is changed.
    """
    request_id = new_id(Prefix.REQUEST)
    call = idempotency.Call(
        owner.id, idempotency_key, "create-request", [model_id, sorted(dataset_ids), method, params]
    )
    if earlier := idempotency.remember(session, call, request_id):
        return session.get_one(Request, earlier)
    models.check_distinct(dataset_ids)
    own = _own_datasets(session, owner, dataset_ids)
    datasets.require_sealed(own)
    model = visibility.one(session, visibility.models(owner), model_id)
    framework = catalog.EncoderSpec.model_validate(model.encoder).framework
    parsed = parameters.complete(method, framework, params)
    # From here on, requests of one model take turns: two must not forget the same data.
    session.refresh(model, with_for_update=True)
    # Models before data sets, as everything locks them. None of these is deleted before the
    # request is there.
    retention.hold(session, dataset_ids=dataset_ids)
    _check_forgettable(session, model, dataset_ids)
    request = Request(
        id=request_id,
        owner_id=owner.id,
        model_id=model.id,
        method=method,
        params=parsed,
        datasets=[RequestDataset(dataset_id=each) for each in dataset_ids],
    )
    path = [RequestState.RECEIVED]
    if policies.of(model.policy).approval == "automatic":
        path += [RequestState.APPROVED, RequestState.QUEUED]
        request.job = _batch(session, model, request, sum(each.samples for each in own))
    add(
        session,
        request,
        path,
        actor=owner.id,
        method=method,
        protocol=protocol(model.id, request_id),
    )
    return request


def approve(session: Session, model_owner: Party, request_id: str) -> Request:
    """Take up a request that waits for the model's owner.

    Raises:
        NotFound: not a request to an own model.
        StateChanged: it does not wait for approval.
    """
    request, model = _asked_of(session, model_owner, request_id)
    move(session, request, RequestState.APPROVED, actor=model_owner.id)
    job = _batch(session, model, request, _samples(session, Request.id == request.id))
    move(session, request, RequestState.QUEUED, job_id=job.id)
    return request


def reject(session: Session, model_owner: Party, request_id: str, reason: str) -> Request:
    """Refuse a request that waits for the model's owner; its owner reads the reason.

    Raises:
        NotFound: not a request to an own model.
        StateChanged: it does not wait for approval.
    """
    request, _ = _asked_of(session, model_owner, request_id)
    move(session, request, RequestState.REJECTED, actor=model_owner.id, reason=reason)
    return request


def withdraw(session: Session, owner: Party, request_id: str) -> Request:
    """Take back a request whose job has not started; a job that nobody asks for any more is cancelled.

    Doing so again changes nothing.

    Once the job has started it is too late, whoever else shares it: the answer must not tell.

    Raises:
        NotFound: not an own request.
        StateChanged: its job has started, or it has ended.
    """
    found = session.scalar(
        select(Request).where(Request.id == request_id, Request.owner_id == owner.id)
    )
    if found is None:
        raise NotFound.of("request", request_id)
    # Model, job, request: the order in which a claim locks them too.
    session.get_one(Model, found.model_id, with_for_update=True)
    session.refresh(found)
    if found.state == RequestState.CANCELLED:
        return found
    job = None
    if found.job_id is not None:
        job = session.get_one(Job, found.job_id, with_for_update=True, populate_existing=True)
        session.refresh(found)
        if job.started_at is not None and not lifecycles.is_final(lifecycles.REQUEST, found.state):
            raise StateChanged(
                f"{found.id} can be withdrawn until its job starts, and that has started. It ends "
                "by itself.",
                state=found.state,
            )
    move(
        session,
        found,
        RequestState.CANCELLED,
        actor=owner.id,
        reason=WITHDRAWN,
        job_id=None,
    )
    if job is not None and not _requests_of(session, job):
        jobs.cancel(session, job, actor=log.SERVICE, reason="all its requests were withdrawn")
    return found


def _requests_of(session: Session, job: Job) -> int:
    counted = select(func.count()).select_from(Request).where(Request.job_id == job.id)
    return session.scalar(counted) or 0


def _asked_of(session: Session, model_owner: Party, request_id: str) -> tuple[Request, Model]:
    """A request to an own model, which is row-locked."""
    request = session.get(Request, request_id)
    if request is None:
        raise NotFound.of("request", request_id)
    try:
        return request, models.owned(session, model_owner, request.model_id)
    except NotFound as error:
        raise NotFound.of("request", request_id) from error


def _own_datasets(session: Session, owner: Party, dataset_ids: Sequence[str]) -> list[Dataset]:
    rows = session.scalars(
        select(Dataset)
        .where(Dataset.id.in_(dataset_ids), Dataset.owner_id == owner.id)
        .options(lazyload(Dataset.shards))
        .order_by(Dataset.id)
    ).all()
    if missing := sorted(set(dataset_ids) - {row.id for row in rows}):
        raise NotFound.of("data set", missing)
    return list(rows)


def _check_forgettable(session: Session, model: Model, dataset_ids: Sequence[str]) -> None:
    if model.head_checkpoint_id is None:
        raise Conflict(f"Model {model.id} has no checkpoint yet; there is nothing to forget.")
    asked = (
        select(RequestDataset.request_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(
            Request.model_id == model.id,
            Request.state.in_([*lineage.UNFINISHED, RequestState.COMPLETED]),
            RequestDataset.dataset_id == CheckpointDataset.dataset_id,
        )
        .exists()
    )
    held = select(
        CheckpointDataset.dataset_id, or_(CheckpointDataset.forgotten, asked).label("gone")
    ).where(
        CheckpointDataset.checkpoint_id == model.head_checkpoint_id,
        CheckpointDataset.dataset_id.in_(dataset_ids),
    )
    gone = {row.dataset_id: row.gone for row in session.execute(held)}
    if foreign := sorted(set(dataset_ids) - set(gone)):
        raise NotInTrainingData(
            f"Model {model.id} was not trained on {', '.join(foreign)}.", dataset_ids=foreign
        )
    if again := sorted(each for each in gone if gone[each]):
        raise AlreadyForgotten(
            f"Model {model.id} has forgotten {', '.join(again)}, or another request is about to.",
            dataset_ids=again,
        )


def _batch(session: Session, model: Model, request: Request, samples: int) -> Job:
    """The job that a request over so many samples joins: one that has not started and has room, or a new one."""
    policy = policies.of(model.policy)
    limit = policy.max_batch_samples
    job, full = _open_batch(session, request), False
    if limit is not None:
        full = samples >= limit
        if job is not None:
            samples += _samples(session, Request.job_id == job.id)
            if samples >= limit:
                waiting.make_due(session, job)
            if samples > limit:
                job = None
    if job is None:
        job = waiting.enqueue(
            session,
            JobKind.UNLEARN,
            actor=log.SERVICE,
            owner_id=model.owner_id,
            params=_job_params(request),
            delay_seconds=0 if full else policy.batch_window_seconds,
            model_id=model.id,
        )
    return job


def _open_batch(session: Session, request: Request) -> Job | None:
    """The newest job of the same model, method and parameters that has not started.

    Locked: a claim that is on its way waits, and then takes the request along.
    """
    return session.scalar(
        select(Job)
        .where(
            Job.model_id == request.model_id,
            Job.kind == JobKind.UNLEARN,
            Job.state == JobState.QUEUED,
            Job.started_at.is_(None),
            Job.params == _job_params(request),
        )
        .order_by(Job.id.desc())
        .limit(1)
        .with_for_update()
    )


def _samples(session: Session, which: Any) -> int:
    counted = (
        select(func.sum(Dataset.samples))
        .join(RequestDataset, RequestDataset.dataset_id == Dataset.id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(which)
    )
    return int(session.scalar(counted) or 0)


def _job_params(request: Request) -> dict[str, Any]:
    return {"method": request.method, "params": request.params, "seed": 0}
