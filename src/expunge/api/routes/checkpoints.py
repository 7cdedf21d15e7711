"""Checkpoints: upload weights, show them, take out what may leave, make one the model's head."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import ModelOwner
from expunge.api.downloads import Wanted, documented_download, stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.routes.models import shown as shown_model
from expunge.api.schemas import checkpoints as schemas
from expunge.api.schemas import models as model_schemas
from expunge.api.schemas.values import CheckpointPath, DatasetId, IdempotencyKey, ModelPath
from expunge.api.service import CurrentService, Service
from expunge.api.uploads import AnnouncedDigest, Upload, described_body, received
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.formats.digests import sha256_file
from expunge.formats.tensors import TensorFileError, read_header, write_release
from expunge.registry import checkpoints, drift, models, orphans, policies, retention, visibility
from expunge.registry.errors import Conflict, InvalidCheckpoint
from expunge.registry.lifecycles import CheckpointState
from expunge.registry.tables import Checkpoint, Model, Party
from expunge.unlearning.catalog import EncoderSpec

FORMAT = "expunge-checkpoint/1"

TrainedOn = Annotated[
    Sequence[DatasetId], Query(description="Data sets that these weights were trained on.")
]

router = APIRouter(tags=["checkpoints"])


@router.post(
    "/models/{model_id}/checkpoints",
    status_code=202,
    summary="Upload a checkpoint",
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
    target = _Target(owner, model_id, dataset_ids, idempotency_key)
    earlier, encoder = await run_in_threadpool(_look_up, service, target, digest)
    settings = service.settings
    async with received(
        request, folder=settings.work_dir, limit=settings.max_checkpoint_bytes, sha256=digest
    ) as upload:
        if earlier is None:
            first = await run_in_threadpool(_store, service, target, encoder, upload)
        else:
            first = earlier
    answer = await until_final(first, lambda: _read(service, owner, first.id), _is_checked, wait)
    accepted(response, f"/checkpoints/{first.id}", final=_is_checked(answer), waited=wait)
    return answer


@dataclass(frozen=True, slots=True)
class _Target:
    """What an upload is for, beside its bytes."""

    owner: Party
    model_id: str
    dataset_ids: Sequence[str]
    idempotency_key: str | None


def _look_up(
    service: Service, target: _Target, sha256: str
) -> tuple[schemas.Checkpoint | None, EncoderSpec]:
    """What the same upload made before, and what the file must fit; bad calls end before the body comes."""
    with service.sessions() as session:
        earlier = checkpoints.uploaded_before(
            session,
            target.owner,
            target.model_id,
            target.dataset_ids,
            f"sha256:{sha256}",
            idempotency_key=target.idempotency_key,
        )
        model = visibility.one(session, visibility.own_models(target.owner), target.model_id)
        if earlier is None:
            models.check_training_data(session, target.owner, model, target.dataset_ids)
        shown = None if earlier is None else _shown(session, model, earlier)
        return shown, EncoderSpec.model_validate(model.encoder)


def _store(
    service: Service, target: _Target, encoder: EncoderSpec, upload: Upload
) -> schemas.Checkpoint:
    with tempfile.TemporaryDirectory(dir=service.settings.work_dir, prefix="release-") as folder:
        release = Path(folder) / "release.safetensors"
        try:
            _check_encoder(read_header(upload.path).metadata, encoder)
            write_release(upload.path, release)
        except TensorFileError as error:
            raise InvalidCheckpoint(f"{error}.") from error
        released = sha256_file(release)
        weights = checkpoints.StoredWeights(
            digest=f"sha256:{upload.sha256}",
            object_key=orphans.put(service.sessions, service.store, upload.path, upload.sha256),
            bytes=upload.size,
            release_digest=f"sha256:{released}",
            release_key=orphans.put(service.sessions, service.store, release, released),
        )
    with service.sessions.begin() as session:
        row = checkpoints.add_upload(
            session,
            target.owner,
            target.model_id,
            target.dataset_ids,
            weights,
            idempotency_key=target.idempotency_key,
        )
        return _shown(session, session.get_one(Model, row.model_id), row)


def _check_encoder(metadata: dict[str, str], expected: EncoderSpec) -> None:
    if metadata.get("format") != FORMAT:
        raise InvalidCheckpoint(
            f"The file's metadata says format {metadata.get('format', '')[:80]!r}; "
            f"{FORMAT!r} is expected.",
            allowed=[FORMAT],
        )
    try:
        found = EncoderSpec.model_validate_json(metadata.get("spec", ""))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "spec"
        raise InvalidCheckpoint(
            f"The file's metadata 'spec' is no encoder specification ({place}: {first['msg']})."
        ) from error
    if differences := list(
        _differences(found.model_dump(mode="json"), expected.model_dump(mode="json"))
    ):
        raise InvalidCheckpoint(
            "The file's encoder is not the model's: "
            + "; ".join(
                f"{field} is {json.dumps(here)}, the model has {json.dumps(there)}"
                for field, here, there in differences
            )
            + ".",
            fields=[field for field, _, _ in differences],
        )


def _differences(
    found: dict[str, Any], expected: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name), expected.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{prefix}{name}.")
        elif here != there:
            yield f"{prefix}{name}", here, there


def _read(service: Service, owner: Party, checkpoint_id: str) -> schemas.Checkpoint:
    with service.sessions() as session:
        row = visibility.one(session, visibility.checkpoints(owner), checkpoint_id)
        return _shown(session, session.get_one(Model, row.model_id), row)


def _shown(session: Session, model: Model, row: Checkpoint) -> schemas.Checkpoint:
    found = drift.of(session, row, policies.of(model.policy))
    return schemas.Checkpoint.of(row, model.head_checkpoint_id, found)


def _is_checked(checkpoint: schemas.Checkpoint) -> bool:
    return checkpoint.state != CheckpointState.CHECKING


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
        items = [_shown(session, model, row) for row in rows]
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
    return _read(service, owner, checkpoint_id)


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
