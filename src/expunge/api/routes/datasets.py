"""Data sets: open one, upload shards, seal it, let a model owner train on it."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import Owner, OwnerOrAuditor, place
from expunge.api.bodies import JsonRoute
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import datasets as schemas
from expunge.api.schemas.values import DatasetPath, IdempotencyKey, PartyPath
from expunge.api.service import CurrentService, Service
from expunge.api.shards import check_name, recorded, room_for, stored
from expunge.api.uploads import AnnouncedDigest, Upload, described_body, received
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.registry import datasets, deletion, destruction, retention, visibility
from expunge.registry.errors import NotSealed
from expunge.registry.lifecycles import DatasetState
from expunge.registry.tables import Party

CONFIRMED: dict[int | str, dict[str, Any]] = {
    200: {"model": schemas.Dataset, "description": "The object store confirmed that it is gone."}
}

router = APIRouter(tags=["datasets"], route_class=JsonRoute)
uploads = APIRouter(tags=["datasets"])


@router.post(
    "/datasets", status_code=201, summary="Open a data set", responses=documented(403, 409)
)
def create_dataset(
    body: schemas.NewDataset,
    owner: Owner,
    service: CurrentService,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Dataset:
    """An empty data set that takes shards until it is sealed. Names are unique among your own."""
    with service.sessions.begin() as session:
        row = datasets.create(session, owner, body.name, idempotency_key=idempotency_key)
        answer = schemas.Dataset.of(row, owner)
    response.headers["Location"] = f"/datasets/{answer.id}"
    return answer


@router.get("/datasets", summary="List data sets", responses=documented(403))
def list_datasets(
    reader: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Dataset]:
    """Your own, and those that were granted to you for training or delegated to you; newest first."""
    with service.sessions() as session:
        rows, following = pages.rows(session, visibility.datasets(reader), page)
        items = [schemas.Dataset.of(row, reader) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/datasets/{dataset_id}", summary="Show a data set", responses=documented(403, 404))
def show_dataset(
    dataset_id: DatasetPath, reader: OwnerOrAuditor, service: CurrentService
) -> schemas.Dataset:
    """State, counts, digest and shards. A model owner with a grant sees this, and no sample."""
    return _read(service, reader, dataset_id)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=202,
    summary="Delete a data set",
    responses=CONFIRMED | documented(403, 404, 409),
)
def delete_dataset(
    dataset_id: DatasetPath, owner: Owner, service: CurrentService, response: Response
) -> schemas.Dataset:
    """Remove its samples, and what audits of it hold, for good. Doing so again changes nothing.

    Refused with `dataset-in-use` and `held_by` while a model holds it or work on it has not ended.
    `200` with state `deleted` once the object store confirmed that all is gone; `202` with state
    `deleting` while it has not: the next sweep goes on by itself. Its row stays, with digest and
    counts: they are evidence. Nobody can audit what was forgotten of it any more.
    """
    with service.sessions.begin() as session:
        deletion.start(session, owner, dataset_id)
    destruction.finish_if_quick(service.sessions, service.store, dataset_id)
    answer = _read(service, owner, dataset_id)
    if answer.state == DatasetState.DELETED:
        response.status_code = 200
    return answer


@uploads.put(
    "/datasets/{dataset_id}/shards/{name}",
    status_code=201,
    summary="Upload a shard",
    dependencies=[Depends(place)],
    responses=documented(400, 403, 404, 409, 413),
    openapi_extra=described_body("application/x-tar"),
)
async def upload_shard(
    *,
    dataset_id: DatasetPath,
    name: str,
    owner: Owner,
    service: CurrentService,
    digest: AnnouncedDigest,
    request: Request,
) -> schemas.Shard:
    """A WebDataset tar: `key.jpg|png|webp`, optionally `key.cls` (label) and `key.txt` (caption).

    Names, kinds and grouping are checked before anything is stored, images on sealing. The same
    shard name again replaces the shard while the data set is open or invalid.
    """
    check_name(name)
    room = await run_in_threadpool(room_for, service, owner, dataset_id, name)
    limit = service.settings.max_shard_bytes
    async with received(
        request, space=service.space, limit=limit, sha256=digest, room=room
    ) as upload:
        return await run_in_threadpool(_store_shard, service, owner, dataset_id, name, upload)


def _store_shard(
    service: Service, owner: Party, dataset_id: str, name: str, upload: Upload
) -> schemas.Shard:
    shard = stored(service, name, upload)
    add = partial(datasets.add_shard, owner=owner, dataset_id=dataset_id, shard=shard)
    recorded(service, owner, dataset_id, shard, add)
    return schemas.Shard.of(shard)


@router.post(
    "/datasets/{dataset_id}/seal",
    status_code=202,
    summary="Seal a data set",
    responses=when_waited(schemas.Dataset) | documented(403, 404, 409),
)
async def seal_dataset(
    dataset_id: DatasetPath,
    owner: Owner,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
) -> schemas.Dataset:
    """Have every sample decoded and recorded; then the data set is `sealed` for ever, or `invalid`.

    Sealing again changes nothing. `Prefer: wait=N` answers 200 with the final state.
    """
    first = await run_in_threadpool(_start_sealing, service, owner, dataset_id)
    answer = await until_final(first, lambda: _read(service, owner, dataset_id), _is_settled, wait)
    accepted(response, f"/datasets/{dataset_id}", final=_is_settled(answer), waited=wait)
    return answer


def _start_sealing(service: Service, owner: Party, dataset_id: str) -> schemas.Dataset:
    with service.sessions.begin() as session:
        row, _ = datasets.start_sealing(session, owner, dataset_id)
        return schemas.Dataset.of(row, owner)


def _is_settled(dataset: schemas.Dataset) -> bool:
    return dataset.state != DatasetState.SEALING


def _read(service: Service, reader: Party, dataset_id: str) -> schemas.Dataset:
    with service.sessions() as session:
        row = visibility.one(session, visibility.datasets(reader), dataset_id)
        return schemas.Dataset.of(row, reader)


@router.get(
    "/datasets/{dataset_id}/samples",
    summary="List samples",
    responses=documented(403, 404, 409),
)
def list_samples(
    dataset_id: DatasetPath, reader: OwnerOrAuditor, service: CurrentService, page: Paging
) -> Page[schemas.Sample]:
    """The samples of a sealed data set of your own or delegated to you, in order of shard and position."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.sampled_datasets(reader), dataset_id)
    if gone := retention.deleted(row):
        raise gone
    if row.index_key is None:
        raise NotSealed(f"Data set {row.id} is {row.state}; it has samples once it is sealed.")
    start = pages.offset(page)
    found = datasets.read_page(service.store, row.index_key, start, page.limit + 1)
    numbered = list(enumerate(found, start))
    shown, following = pages.cut(numbered, page.limit, lambda each: str(each[0] + 1))
    return Page(items=[schemas.Sample.of(record) for _, record in shown], next_cursor=following)


@router.post(
    "/datasets/{dataset_id}/grants",
    status_code=201,
    summary="Allow training",
    responses=documented(403, 404, 409),
)
def create_grant(
    dataset_id: DatasetPath, body: schemas.NewGrant, owner: Owner, service: CurrentService
) -> schemas.Grant:
    """Let a model owner train on the data set. Granting again changes nothing."""
    with service.sessions.begin() as session:
        row = datasets.grant(session, owner, dataset_id, body.party_id)
    return schemas.Grant.of(row)


@router.delete(
    "/datasets/{dataset_id}/grants/{party_id}",
    status_code=204,
    summary="Withdraw a grant",
    responses=documented(403, 404),
)
def withdraw_grant(
    dataset_id: DatasetPath, party_id: PartyPath, owner: Owner, service: CurrentService
) -> None:
    """No new training may use the data set. What was trained stays until it is unlearned."""
    with service.sessions.begin() as session:
        datasets.withdraw_grant(session, owner, dataset_id, party_id)
