"""Checkpoints: upload weights, show them, take out what may leave, make one the model's head."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import ModelOwner, place
from expunge.api.downloads import Wanted, documented_download, stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.routes.models import shown as shown_model
from expunge.api.schemas import checkpoints as schemas
from expunge.api.schemas import models as model_schemas
from expunge.api.schemas.values import CheckpointPath, DatasetId, IdempotencyKey, ModelPath
from expunge.api.service import CurrentService
from expunge.api.uploads import AnnouncedDigest, described_body, received
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.api.weights import Target, is_checked, look_up, read, room_for, shown, store
from expunge.registry import checkpoints, drift, policies, retention, visibility
from expunge.registry.errors import Conflict
from expunge.registry.lifecycles import CheckpointState
from expunge.registry.quota import ANY
from expunge.registry.tables import Checkpoint, Model

TrainedOn = Annotated[
    Sequence[DatasetId], Query(description="Data sets that these weights were trained on.")
]

router = APIRouter(tags=["checkpoints"])


@router.post(
    "/models/{model_id}/checkpoints",
    status_code=202,
    summary="Upload a checkpoint",
    dependencies=[Depends(place)],
    responses=when_waited(schemas.Checkpoint) | documented(400, 403, 404, 409, 413),
    openapi_extra=described_body("application/octet-stream"),
)
async def upload_checkpoint(
    *,
    model_id: ModelPath,
    owner: ModelOwner,
    service: CurrentService,
    digest: AnnouncedDigest,
    wait: WaitSeconds,
    request: Request,
    response: Response,
    dataset_ids: TrainedOn = (),
    idempotency_key: IdempotencyKey = None,
) -> schemas.Checkpoint:
    """A safetensors file with this service's header. Nothing is ever unpickled.

    The header is compared with the model at once; a worker then loads the tensors. The first
    checkpoint that is ready becomes the head. `Prefer: wait=N` answers 200 with the final state.
    """
    target = Target(owner, model_id, dataset_ids, idempotency_key)
    earlier, encoder = await run_in_threadpool(look_up, service, target, digest)
    # A repeated call sends its file again, which is not stored again.
    room = ANY if earlier else await run_in_threadpool(room_for, service, owner)
    async with received(
        request,
        space=service.space,
        limit=service.settings.max_checkpoint_bytes,
        sha256=digest,
        room=room,
    ) as upload:
        if earlier is None:
            first = await run_in_threadpool(store, service, target, encoder, upload)
        else:
            first = earlier
    answer = await until_final(first, lambda: read(service, owner, first.id), is_checked, wait)
    accepted(response, f"/checkpoints/{first.id}", final=is_checked(answer), waited=wait)
    return answer


@router.get(
    "/models/{model_id}/checkpoints", summary="List checkpoints", responses=documented(403, 404)
)
def list_checkpoints(
    model_id: ModelPath, owner: ModelOwner, service: CurrentService, page: Paging
) -> Page[schemas.Checkpoint]:
    """The checkpoints of your model, newest first."""
    with service.sessions() as session:
        model = visibility.one(session, visibility.own_models(owner), model_id)
        readable = visibility.checkpoints(owner).where(Checkpoint.model_id == model_id)
        rows, following = pages.rows(session, readable, page)
        items = [shown(session, model, row) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get(
    "/models/{model_id}/lineage", summary="Show a model's history", responses=documented(403, 404)
)
def show_lineage(
    model_id: ModelPath, owner: ModelOwner, service: CurrentService, page: Paging
) -> Page[schemas.Ancestry]:
    """Its checkpoints, oldest first: what each came from, what it has cost, whether one can go back.

    Going back is a promotion, and refused where it would bring back what was forgotten on request.
    """
    with service.sessions() as session:
        model = visibility.one(session, visibility.own_models(owner), model_id)
        readable = visibility.checkpoints(owner).where(Checkpoint.model_id == model_id)
        rows, following = pages.rows(session, readable, page, oldest_first=True)
        items = [_ancestry(session, model, row) for row in rows]
    return Page(items=items, next_cursor=following)


def _ancestry(session: Session, model: Model, row: Checkpoint) -> schemas.Ancestry:
    is_head = row.id == model.head_checkpoint_id
    refusal = checkpoints.objection(session, row)
    objection = "It is the head." if is_head else refusal.detail if refusal else None
    return schemas.Ancestry.of(
        row,
        head_checkpoint_id=model.head_checkpoint_id,
        drift=drift.of(session, row, policies.of(model.policy)),
        objection=objection,
    )


@router.get(
    "/checkpoints/{checkpoint_id}", summary="Show a checkpoint", responses=documented(403, 404)
)
def show_checkpoint(
    checkpoint_id: CheckpointPath, owner: ModelOwner, service: CurrentService
) -> schemas.Checkpoint:
    """Where it comes from, what it was trained on and what it has forgotten."""
    return read(service, owner, checkpoint_id)


@router.get(
    "/checkpoints/{checkpoint_id}/weights",
    summary="Download weights",
    response_class=StreamingResponse,
    responses=documented_download("A safetensors file.", "application/octet-stream")
    | documented(409),
)
def download_weights(
    checkpoint_id: CheckpointPath, owner: ModelOwner, service: CurrentService, wanted: Wanted
) -> Response:
    """Encoder and projector only: queue and key encoder stay, since they may hold forgotten data.

    `409 checkpoint-destroyed` once the time is over for which the policy keeps what was forgotten.
    """
    with service.sessions() as session:
        row = visibility.one(session, visibility.checkpoints(owner), checkpoint_id)
    if refusal := retention.destroyed(row):
        raise refusal
    if row.state != CheckpointState.READY:
        raise Conflict(f"Checkpoint {row.id} is {row.state}.", state=row.state)
    return stream_object(
        service.store,
        row.release_key,
        "application/octet-stream",
        wanted,
        headers={"Content-Disposition": f'attachment; filename="{row.id}.safetensors"'},
    )


@router.post(
    "/checkpoints/{checkpoint_id}/promote",
    summary="Promote a checkpoint",
    responses=documented(403, 404, 409),
)
def promote_checkpoint(
    checkpoint_id: CheckpointPath, owner: ModelOwner, service: CurrentService
) -> model_schemas.Model:
    """Make it the model's head: a result that waits, or an earlier head to which one goes back.

    Refused, with the data sets named, if it holds data that was forgotten on request.
    """
    with service.sessions.begin() as session:
        return shown_model(session, checkpoints.promote(session, owner, checkpoint_id))
