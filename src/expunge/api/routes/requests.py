"""Removal requests: ask a model to forget, and follow what happens."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from expunge.api import pages
from expunge.api.auth import AnyCaller, ModelOwner, Owner, OwnerOrAuditor, place
from expunge.api.bodies import JsonRoute
from expunge.api.events import LastEventId, Moment, follow
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import requests as schemas
from expunge.api.schemas.log import SHARED, LogEntry
from expunge.api.schemas.residue import RequestResidue, Residue
from expunge.api.schemas.values import IdempotencyKey, RequestPath
from expunge.api.service import CurrentService
from expunge.api.waiting import accepted
from expunge.registry import access, lifecycles, requests, residue, reviews, visibility
from expunge.registry.access import Reader
from expunge.registry.lifecycles import RequestState
from expunge.registry.tables import Checkpoint, Job, Model, Party, Request, Role

router = APIRouter(tags=["requests"], route_class=JsonRoute)


@router.post(
    "/requests",
    status_code=202,
    summary="Ask to be forgotten",
    responses=documented(403, 404, 409),
)
def create_request(
    body: schemas.NewRequest,
    owner: Owner,
    service: CurrentService,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Request:
    """Have a model forget data sets of yours. One job serves all requests of a batching window.

    It is taken up at once, or, if the model's policy says so, once its owner approves.
    """
    with service.sessions.begin() as session:
        row = requests.create(
            session,
            owner,
            model_id=body.model_id,
            dataset_ids=body.dataset_ids,
            method=body.method,
            params=body.params,
            idempotency_key=idempotency_key,
        )
        session.flush()
        answer = _shown(session, [row], owner)[0]
    accepted(response, f"/requests/{answer.id}")
    return answer


@router.get("/requests", summary="List requests", responses=documented(403))
def list_requests(
    reader: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Request]:
    """Your own, those that others made to your models, and those about what is delegated to you; newest first."""
    with service.readings() as session:
        rows, following = pages.rows(session, _readable(reader), page)
        items = _shown(session, rows, reader)
    return Page(items=items, next_cursor=following)


@router.get("/requests/{request_id}", summary="Show a request", responses=documented(403, 404))
def show_request(
    request_id: RequestPath, reader: OwnerOrAuditor, service: CurrentService
) -> schemas.Request:
    """State, progress while it runs, result once it is completed. An auditor sees the delegated data sets of it."""
    with service.readings() as session:
        return _shown(session, [_SHOWN.one(session, reader, request_id)], reader)[0]


@router.post(
    "/requests/{request_id}/approve",
    summary="Approve a request",
    responses=documented(403, 404, 409),
)
def approve_request(
    request_id: RequestPath, owner: ModelOwner, service: CurrentService
) -> schemas.Request:
    """Take up a request to your model that waits for you, where the policy says `approval: manual`."""
    with service.sessions.begin() as session:
        row = requests.approve(session, owner, request_id)
        return _shown(session, [row], owner)[0]


@router.post(
    "/requests/{request_id}/reject",
    summary="Reject a request",
    responses=documented(403, 404, 409),
)
def reject_request(
    request_id: RequestPath, body: schemas.Rejection, owner: ModelOwner, service: CurrentService
) -> schemas.Request:
    """Refuse a request to your model that waits for you; its owner reads the reason."""
    with service.sessions.begin() as session:
        row = requests.reject(session, owner, request_id, body.reason)
        return _shown(session, [row], owner)[0]


@router.post(
    "/requests/{request_id}/cancel",
    summary="Withdraw a request",
    responses=documented(403, 404, 409),
)
def cancel_request(
    request_id: RequestPath, owner: Owner, service: CurrentService
) -> schemas.Request:
    """Take back your own request until its job starts; from then on it ends by itself.

    Doing so again changes nothing.
    """
    with service.sessions.begin() as session:
        row = requests.withdraw(session, owner, request_id)
        return _shown(session, [row], owner)[0]


@router.get(
    "/requests/{request_id}/log", summary="Read a request's log", responses=documented(403, 404)
)
def read_request_log(
    request_id: RequestPath, owner: Owner, service: CurrentService, page: Paging
) -> Page[LogEntry]:
    """Its whole life in order: what happened, when, who did it and why. Nothing of its job."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.requests(owner), request_id)
        model = session.get_one(Model, row.model_id)
        found, following = pages.log_rows(session, row.id, page)
    # The model's owner knows whose request it is from the request itself.
    actors = {row.owner_id: row.owner_id, model.owner_id: "model owner", owner.id: "you"}
    items = [LogEntry.of(each, number, actors, SHARED) for number, each in found]
    return Page(items=items, next_cursor=following)


@router.get(
    "/requests/{request_id}/residue",
    summary="Show what is left of the data",
    responses=documented(403, 404),
)
def show_residue(
    request_id: RequestPath, reader: OwnerOrAuditor, service: CurrentService
) -> RequestResidue:
    """What still exists of the request's data, where, why and until when.

    Names what the request's owner may know; the rest is counted. To the model's owner and to
    auditors audits and encodings are counted only.
    """
    with service.sessions() as session:
        row = visibility.one(session, visibility.requests(reader), request_id)
        found = residue.of(session, row)
        if reader.role == Role.AUDITOR:
            only = set(session.scalars(access.delegated_datasets(reader)))
            found = [each for each in found if each.what != "raw-samples" or each.id in only]
    shown = found if reader.id == row.owner_id else residue.for_others(found)
    return RequestResidue(request_id=row.id, items=[Residue.of(each) for each in shown])


def _readable(party: Reader) -> Select[Request]:
    job = joinedload(Request.job).load_only(
        Job.progress, Job.metrics, Job.base_checkpoint_id, Job.result_checkpoint_id
    )
    return visibility.requests(party).options(job)


_SHOWN = visibility.Lookup(_readable(visibility.ANYONE))


def _shown(session: Session, rows: list[Request], reader: Party) -> list[schemas.Request]:
    named = {
        checkpoint_id
        for row in rows
        if row.state == RequestState.COMPLETED and row.job is not None
        for checkpoint_id in (row.job.base_checkpoint_id, row.job.result_checkpoint_id)
        if checkpoint_id is not None
    }
    digests: dict[str, str] = {}
    if named:
        found = session.execute(
            select(Checkpoint.id, Checkpoint.digest).where(Checkpoint.id.in_(named))
        )
        digests = {each.id: each.digest for each in found}
    only = (
        set(session.scalars(access.delegated_datasets(reader)))
        if reader.role == Role.AUDITOR
        else None
    )
    reviewed = reviews.findings(session, reader, rows)
    return [schemas.Request.of(row, digests, reviewed[row.id], only) for row in rows]


def _watched(request_id: RequestPath, owner: Owner, service: CurrentService) -> str:
    """The request's id, once it is known to be visible: a stream that has begun cannot answer 404."""
    with service.sessions() as session:
        return visibility.one(session, visibility.requests(owner), request_id).id


@router.get(
    "/requests/{request_id}/events",
    summary="Follow a request",
    response_class=EventSourceResponse,
    dependencies=[Depends(place)],
    responses=documented(403, 404),
)
async def follow_request(
    request_id: Annotated[str, Depends(_watched)],
    caller: AnyCaller,
    service: CurrentService,
    last_event_id: LastEventId,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `state`, `progress`, at last `end`. `Last-Event-ID` resumes."""

    def moment(session: Session) -> Moment:
        row = session.get_one(Request, request_id, options=[joinedload(Request.job)])
        final = lifecycles.is_final(lifecycles.REQUEST, row.state)
        return Moment(row.state, final, schemas.visible_progress(row))

    async for event in follow(service, request_id, moment, last_event_id, caller.key.id):
        yield event
