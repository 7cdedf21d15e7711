"""Removal requests: what may be asked, and how requests become jobs. Never runs one."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from expunge.registry import (
    datasets,
    idempotency,
    jobs,
    lifecycles,
    log,
    models,
    parameters,
    visibility,
)
from expunge.registry.errors import AlreadyForgotten, Conflict, NotFound, NotInTrainingData
from expunge.registry.ids import Prefix, new_id
from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.tables import (
    Checkpoint,
    Dataset,
    Job,
    JobKind,
    Model,
    Party,
    Request,
    RequestDataset,
)
from expunge.registry.transitions import move
from expunge.unlearning import catalog

UNFINISHED = [state for state in RequestState if not lifecycles.is_final(lifecycles.REQUEST, state)]


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
    """Accept a removal request: durable, approved by policy, and part of a job when this returns.

    A call with the key and content of an earlier one returns the earlier request.

    Raises:
        IdempotencyConflict: the key was used for another request.
        NotFound: a data set is not the caller's, or the model was not trained on any of theirs.
        Invalid, UnknownMethod, InvalidParameters, NotInTrainingData, NotSealed, AlreadyForgotten,
        Conflict: see each; nothing is changed.
    """
    request_id = new_id(Prefix.REQUEST)
    if idempotency_key is not None:
        content = [model_id, sorted(dataset_ids), method, params]
        earlier = idempotency.remember(session, owner, idempotency_key, content, request_id)
        if earlier is not None:
            return session.get_one(Request, earlier)
    models.check_distinct(dataset_ids)
    own = _own_datasets(session, owner, dataset_ids)
    datasets.require_sealed(own)
    model = visibility.one(session, visibility.models(owner), model_id)
    session.refresh(model, with_for_update=True)
    framework = catalog.EncoderSpec.model_validate(model.encoder).framework
    parsed = parameters.complete(method, framework, params)
    _check_forgettable(session, model, dataset_ids)
    request = Request(
        id=request_id,
        owner_id=owner.id,
        model_id=model.id,
        method=method,
        params=parsed,
        state=RequestState.RECEIVED,
        datasets=[RequestDataset(dataset_id=each) for each in dataset_ids],
    )
    session.add(request)
    session.flush()
    log.append(session, owner.id, request.id, RequestState.RECEIVED, method=method)
    move(session, request, RequestState.APPROVED)
    job = _open_batch(session, model, request) or _new_batch(session, model, request)
    move(session, request, RequestState.QUEUED, job_id=job.id)
    return request


def _own_datasets(session: Session, owner: Party, dataset_ids: Sequence[str]) -> list[Dataset]:
    rows = session.scalars(
        select(Dataset).where(Dataset.id.in_(dataset_ids), Dataset.owner_id == owner.id)
    ).all()
    if missing := sorted(set(dataset_ids) - {row.id for row in rows}):
        raise NotFound.of("data set", missing)
    return list(rows)


def _check_forgettable(session: Session, model: Model, dataset_ids: Sequence[str]) -> None:
    if model.head_checkpoint_id is None:
        raise Conflict(f"Model {model.id} has no checkpoint yet; there is nothing to forget.")
    head = session.get_one(Checkpoint, model.head_checkpoint_id)
    if foreign := sorted(set(dataset_ids) - set(head.trained_on)):
        raise NotInTrainingData(
            f"Model {model.id} was not trained on {', '.join(foreign)}.", dataset_ids=foreign
        )
    waiting = session.scalars(
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(Request.model_id == model.id, Request.state.in_(UNFINISHED))
    ).all()
    gone = set(head.forgotten) | set(_unpromoted(session, model)) | set(waiting)
    if again := sorted(set(dataset_ids) & gone):
        raise AlreadyForgotten(
            f"Model {model.id} has forgotten {', '.join(again)}, or another request is about to.",
            dataset_ids=again,
        )
    if not set(head.retained) - gone - set(dataset_ids):
        raise Conflict(
            f"Model {model.id} has too little other training data to forget these and stay of "
            "use; its owner can take it out of service instead.",
        )


def _unpromoted(session: Session, model: Model) -> Sequence[str]:
    """Data sets of completed requests whose result was not promoted: still in the head, but dealt with."""
    return session.scalars(
        select(RequestDataset.dataset_id)
        .join(Request, Request.id == RequestDataset.request_id)
        .where(Request.model_id == model.id, Request.state == RequestState.COMPLETED)
    ).all()


def _open_batch(session: Session, model: Model, request: Request) -> Job | None:
    """A job of the same model, method and parameters whose batching window is still open."""
    return session.scalar(
        select(Job)
        .where(
            Job.model_id == model.id,
            Job.kind == JobKind.UNLEARN,
            Job.state == JobState.QUEUED,
            Job.due_at > func.now(),
            Job.params == _job_params(request),
        )
        .with_for_update()
    )


def _new_batch(session: Session, model: Model, request: Request) -> Job:
    return jobs.enqueue(
        session,
        JobKind.UNLEARN,
        actor=log.SERVICE,
        params=_job_params(request),
        delay_seconds=model.policy["batch_window_seconds"],
        model_id=model.id,
    )


def _job_params(request: Request) -> dict[str, Any]:
    return {"method": request.method, "params": request.params, "seed": 0}
