"""Jobs: what training the caller's models undergo."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import Select
from sqlalchemy.orm import Session, undefer

from expunge.api import pages
from expunge.api.auth import AnyCaller, ModelOwner, place
from expunge.api.bodies import JsonRoute
from expunge.api.events import LastEventId, Moment, follow
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import jobs as schemas
from expunge.api.schemas.log import OWNERS, LogEntry
from expunge.api.schemas.values import JobPath, Progress
from expunge.api.service import CurrentService
from expunge.evidence.manifest import Manifest
from expunge.registry import fleet, lifecycles, manifests, steering, visibility
from expunge.registry.access import Reader
from expunge.registry.jobs import LIVE_STATES
from expunge.registry.tables import Job

router = APIRouter(tags=["jobs"], route_class=JsonRoute)


@router.get("/jobs", summary="List jobs", responses=documented(403))
def list_jobs(owner: ModelOwner, service: CurrentService, page: Paging) -> Page[schemas.Job]:
    """Pre-training and unlearning of your models, newest first."""
    with service.readings() as session:
        rows, following = pages.rows(session, _readable(owner), page)
        unserved = fleet.unserved(session, rows)
        items = [schemas.Job.of(row, unserved.get(row.id)) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/jobs/{job_id}", summary="Show a job", responses=documented(403, 404))
def show_job(job_id: JobPath, owner: ModelOwner, service: CurrentService) -> schemas.Job:
    """State, progress, attempts, and what was measured once it is done."""
    with service.readings() as session:
        row = _SHOWN.one(session, owner, job_id)
        return schemas.Job.of(row, fleet.unserved(session, [row]).get(row.id))


@router.patch("/jobs/{job_id}", summary="Change a job's turn", responses=documented(403, 404, 409))
def change_job(
    job_id: JobPath, body: schemas.JobChange, owner: ModelOwner, service: CurrentService
) -> schemas.Job:
    """Let a waiting job go before or after others of yours of the same kind."""
    with service.sessions.begin() as session:
        row = steering.prioritise(session, owner, job_id, body.priority)
        return schemas.Job.of(row, fleet.unserved(session, [row]).get(row.id))


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", responses=documented(403, 404, 409))
def cancel_job(
    job_id: JobPath,
    owner: ModelOwner,
    service: CurrentService,
    body: schemas.Cancellation | None = None,
) -> schemas.Job:
    """End a waiting or running job and all its requests, whose owners read the reason.

    A running attempt may write nothing from this moment on; its device is free within seconds, the
    head stays as it was. Doing so again changes nothing.
    """
    with service.sessions.begin() as session:
        row = steering.cancel_job(session, owner, job_id, body.reason if body else None)
        return schemas.Job.of(row)


@router.get(
    "/jobs/{job_id}/manifest", summary="Read a run's manifest", responses=documented(403, 404, 409)
)
def read_job_manifest(job_id: JobPath, owner: ModelOwner, service: CurrentService) -> Manifest:
    """What a third party needs to repeat the run and find a result of the same digest."""
    with service.sessions() as session:
        return manifests.of(visibility.one(session, visibility.jobs(owner), job_id))


@router.get("/jobs/{job_id}/log", summary="Read a job's log", responses=documented(403, 404))
def read_job_log(
    job_id: JobPath, owner: ModelOwner, service: CurrentService, page: Paging
) -> Page[LogEntry]:
    """Its whole life in order: who, when, which attempt, why."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.jobs(owner), job_id)
        found, following = pages.log_rows(session, row.id, page)
    actors = {owner.id: "you"}
    items = [LogEntry.of(each, number, actors, OWNERS) for number, each in found]
    return Page(items=items, next_cursor=following)


def _readable(owner: Reader) -> Select[Job]:
    return visibility.jobs(owner).options(undefer(Job.request_ids))


_SHOWN = visibility.Lookup(_readable(visibility.ANYONE))


def _watched(job_id: JobPath, owner: ModelOwner, service: CurrentService) -> str:
    """The job's id, once it is known to be visible: a stream that has begun cannot answer 404."""
    with service.sessions() as session:
        return visibility.one(session, visibility.jobs(owner), job_id).id


@router.get(
    "/jobs/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    dependencies=[Depends(place)],
    responses=documented(403, 404),
)
async def follow_job(
    job_id: Annotated[str, Depends(_watched)],
    caller: AnyCaller,
    service: CurrentService,
    last_event_id: LastEventId,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `state`, `progress`, at last `end`. `Last-Event-ID` resumes."""

    def moment(session: Session) -> Moment:
        row = session.get_one(Job, job_id)
        live = row.state in LIVE_STATES and row.progress is not None
        return Moment(
            row.state,
            lifecycles.is_final(lifecycles.JOB, row.state),
            Progress.model_validate(row.progress) if live else None,
        )

    async for event in follow(service, job_id, moment, last_event_id, caller.key.id):
        yield event
