"""Checkpoints: upload weights, show them, take out what may leave, make one the model's head."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from expunge.api import pages
from expunge.api.auth import ModelOwner
from expunge.api.downloads import stream_object
from expunge.api.pages import Page, Paging
from expunge.api.problems import documented
from expunge.api.schemas import checkpoints as schemas
from expunge.api.schemas import models as model_schemas
from expunge.api.schemas.values import CheckpointPath, DatasetId, ModelPath
from expunge.api.service import CurrentService, Service
from expunge.api.uploads import AnnouncedDigest, Upload, described_body, received
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.formats.digests import content_digest, sha256_file
from expunge.formats.tensors import TensorFileError, read_header, write_release
from expunge.registry import checkpoints, models, visibility
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
) -> schemas.Checkpoint:
    """A safetensors file with this service's header. Nothing is ever unpickled.

    The header is compared with the model at once; a worker then loads the tensors. The first
    checkpoint that is ready becomes the head. `Prefer: wait=N` answers 200 with the final state.
    """
    encoder = await run_in_threadpool(_expected_encoder, service, owner, model_id, dataset_ids)
    settings = service.settings
    async with received(
        request, folder=settings.work_dir, limit=settings.max_checkpoint_bytes, sha256=digest
    ) as upload:
        first = await run_in_threadpool(
            _store,
            service,
            owner,
            model_id,
            dataset_ids=dataset_ids,
            encoder=encoder,
            upload=upload,
        )
    answer = await until_final(first, lambda: _read(service, owner, first.id), _is_checked, wait)
    accepted(response, f"/checkpoints/{first.id}", final=_is_checked(answer), waited=wait)
    return answer


def _expected_encoder(
    service: Service, owner: Party, model_id: str, dataset_ids: Sequence[str]
) -> EncoderSpec:
    with service.sessions() as session:
        model = models.owned(session, owner, model_id)
        models.check_training_data(session, owner, model, dataset_ids)
        return EncoderSpec.model_validate(model.encoder)


def _store(
    service: Service,
    owner: Party,
    model_id: str,
    *,
    dataset_ids: Sequence[str],
    encoder: EncoderSpec,
    upload: Upload,
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
            object_key=service.store.put(upload.path, upload.sha256),
            bytes=upload.size,
            release_digest=f"sha256:{released}",
            release_key=service.store.put(release, released),
        )
    with service.sessions.begin() as session:
        row = checkpoints.add_upload(session, owner, model_id, dataset_ids, weights)
        return _shown(session, row)


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
        return _shown(
            session, visibility.one(session, visibility.checkpoints(owner), checkpoint_id)
        )


def _shown(session: Session, row: Checkpoint) -> schemas.Checkpoint:
    head = session.scalar(select(Model.head_checkpoint_id).where(Model.id == row.model_id))
    return schemas.Checkpoint.of(row, head)


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
        items = [schemas.Checkpoint.of(row, model.head_checkpoint_id) for row in rows]
    return Page(items=items, next_cursor=following)


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
    responses={
        200: {
            "description": "A safetensors file.",
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        },
        **documented(403, 404, 409),
    },
)
def download_weights(
    checkpoint_id: CheckpointPath, owner: ModelOwner, service: CurrentService
) -> Response:
    """Encoder and projector only: queue and key encoder stay, since they may hold forgotten data."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.checkpoints(owner), checkpoint_id)
    if row.state != CheckpointState.READY:
        raise Conflict(f"Checkpoint {row.id} is {row.state}.", state=row.state)
    return stream_object(
        service.store,
        row.release_key,
        "application/octet-stream",
        headers={
            "Content-Digest": content_digest(row.release_digest.removeprefix("sha256:")),
            "Content-Disposition": f'attachment; filename="{row.id}.safetensors"',
        },
    )


@router.post(
    "/checkpoints/{checkpoint_id}/promote",
    summary="Promote a checkpoint",
    responses=documented(403, 404, 409),
)
def promote_checkpoint(
    checkpoint_id: CheckpointPath, owner: ModelOwner, service: CurrentService
) -> model_schemas.Model:
    """Make it the model's head; refused if it holds data that the head has forgotten."""
    with service.sessions.begin() as session:
        row = checkpoints.promote(session, owner, checkpoint_id)
    return model_schemas.Model.of(row)
