"""Encodings: what both encoders say about own samples, for an audit at home that need not trust the service."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Select
from sqlalchemy.orm import joinedload, lazyload
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import OwnerOrAuditor, place
from expunge.api.bodies import JsonRoute
from expunge.api.downloads import Wanted, documented_download, stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import encodings as schemas
from expunge.api.schemas.values import (
    FINAL_WORK_STATES,
    EncodingPath,
    IdempotencyKey,
    RequestId,
)
from expunge.api.service import CurrentService, Service
from expunge.api.uploads import AnnouncedDigest, Upload, described_body, expected
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.formats.home_views import ViewError, index_views
from expunge.registry import asking, encodings, orphans, visibility
from expunge.registry.access import Budget
from expunge.registry.errors import Invalid, NotFound
from expunge.registry.tables import Checkpoint, Encoding, Party

MAX_VIEWS_BYTES = 256 * 2**20
"""Of a tar of views made at home."""

router = APIRouter(tags=["encodings"], route_class=JsonRoute)
uploads = APIRouter(tags=["encodings"])


class InvalidViews(Invalid):
    """A tar of views breaks a rule; the detail names the member."""

    slug, title = "invalid-views", "Invalid views"


@router.post(
    "/encode",
    status_code=202,
    summary="Encode own samples",
    responses=when_waited(schemas.Encoding) | documented(403, 404, 409, 429),
)
async def create_encoding(
    *,
    body: schemas.NewEncoding,
    party: OwnerOrAuditor,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Encoding:
    """Outputs of the encoders before and after a completed request on your registered samples.

    With a signed receipt that names the weights. `Prefer: wait=N` answers 200 when they are there.
    """
    asked = body.asked()
    return await _answered(service, party, asked, key=idempotency_key, wait=wait, response=response)


@uploads.post(
    "/encode/views",
    status_code=202,
    summary="Encode own views",
    dependencies=[Depends(place)],
    responses=when_waited(schemas.Encoding) | documented(400, 403, 404, 409, 413, 429),
    openapi_extra=described_body("application/x-tar"),
)
async def create_encoding_of_views(
    *,
    request_id: Annotated[RequestId, Query(description="The completed request.")],
    party: OwnerOrAuditor,
    service: CurrentService,
    digest: AnnouncedDigest,
    wait: WaitSeconds,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Encoding:
    """As above, on views that you made at home: a tar of `<name>__<n>.png` and `<name>__<n>.json`.

    The JSON says `{"sample": "dst_…/key", "crop": [top, left, height, width], "flip": false}`. Views
    that are not recognised as crops of the registered sample make the encoding fail and are named.
    It is charged as one query before the tar is read, whatever becomes of it then, and its samples
    once they are known.
    """
    # What is charged has its room, also if it does not say how much that is.
    limit = MAX_VIEWS_BYTES
    with expected(request, space=service.space, limit=limit, unannounced=limit) as body:
        size, reserved = await run_in_threadpool(
            _reserved, service, party, request_id, digest, idempotency_key
        )
        upload = await body.received(digest)
        asked = await run_in_threadpool(_stored, service, request_id, upload, size)
    return await _answered(
        service,
        party,
        asked,
        key=idempotency_key,
        wait=wait,
        response=response,
        reserved=reserved,
    )


def _reserved(
    service: Service, party: Party, request_id: str, sha256: str, key: str | None
) -> tuple[int, int | None]:
    """The encoders' image size in pixels, and the query that is charged for what is about to come."""
    with service.sessions.begin() as session:
        size = encodings.image_size(session, party, request_id)
        budget = Budget.of(service.settings)
        return size, encodings.reserve(
            session,
            party,
            request_id,
            digest=f"sha256:{sha256}",
            budget=budget,
            idempotency_key=key,
        )


def _stored(service: Service, request_id: str, upload: Upload, size: int) -> encodings.Asked:
    try:
        views = index_views(
            upload.path,
            size,
            max_samples=encodings.MAX_SAMPLES,
            max_views=encodings.max_own_views(size),
        )
    except ViewError as error:
        raise InvalidViews(str(error)) from error
    dataset_ids, samples = encodings.samples_of([each[0].sample for each in views])
    own = encodings.OwnViews(
        object_key=orphans.put(service.sessions, service.store, upload.path, upload.sha256),
        digest=f"sha256:{upload.sha256}",
        dataset_ids=dataset_ids,
        samples=samples,
        views=len(views[0]),
    )
    return encodings.Asked.of_views(request_id, own)


async def _answered(
    service: Service,
    party: Party,
    asked: encodings.Asked,
    *,
    key: str | None,
    wait: int,
    response: Response,
    reserved: int | None = None,
) -> schemas.Encoding:
    first, job_id = await run_in_threadpool(_create, service, party, asked, key, reserved)
    with service.endings.of(job_id) as ended:
        answer = await until_final(
            first, lambda: _read(service, party, first.id), _is_done, wait, ended=ended
        )
    accepted(response, f"/encodings/{first.id}", final=_is_done(answer), waited=wait)
    return answer


def _create(
    service: Service, party: Party, asked: encodings.Asked, key: str | None, reserved: int | None
) -> tuple[schemas.Encoding, str]:
    asking.require_known_keys(service.sessions, service.indexes, party, asked, key)
    budget = Budget.of(service.settings)
    with service.sessions.begin() as session:
        row = encodings.create(
            session, party, asked, budget=budget, reserved=reserved, idempotency_key=key
        )
        session.refresh(row)
        return schemas.Encoding.of(row), row.job_id


def _is_done(encoding: schemas.Encoding) -> bool:
    return encoding.state in FINAL_WORK_STATES


def _read(service: Service, party: Party, encoding_id: str) -> schemas.Encoding:
    with service.sessions() as session:
        return schemas.Encoding.of(visibility.one(session, _readable(party), encoding_id))


def _readable(party: Party) -> Select[Encoding]:
    sides = [
        joinedload(side).options(lazyload(Checkpoint.datasets))
        for side in (Encoding.before, Encoding.after)
    ]
    return visibility.encodings(party).options(*sides)


@router.get("/encodings", summary="List encodings", responses=documented(403))
def list_encodings(
    party: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Encoding]:
    """Encodings of your requests, and those that you asked for as an auditor, newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, _readable(party), page)
        items = [schemas.Encoding.of(row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/encodings/{encoding_id}", summary="Show an encoding", responses=documented(403, 404))
def show_encoding(
    encoding_id: EncodingPath, party: OwnerOrAuditor, service: CurrentService
) -> schemas.Encoding:
    """State, weights, and once it is there the receipt and the address of the outputs."""
    return _read(service, party, encoding_id)


@router.get(
    "/encodings/{encoding_id}/outputs.npz",
    summary="Download outputs",
    response_class=StreamingResponse,
    responses=documented_download(
        "Per level `<level>_before` and `<level>_after`, (V, N, D) float32.",
        "application/octet-stream",
    ),
)
def download_outputs(
    encoding_id: EncodingPath, party: OwnerOrAuditor, service: CurrentService, wanted: Wanted
) -> Response:
    """NumPy's npz: L2-normalised outputs of V views of N samples, keys, image digests, the views' seed."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.encodings(party), encoding_id)
    if row.outputs_key is None:
        raise NotFound(f"Encoding {encoding_id} has no outputs (yet, or any more).")
    return stream_object(service.store, row.outputs_key, "application/octet-stream", wanted)
