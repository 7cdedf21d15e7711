"""Checkpoints that are sent in parts, to this service or to its object store, so that what breaks off goes on."""

import hashlib
import tempfile
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Annotated
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from expunge.api.auth import ModelOwner, place
from expunge.api.bodies import JsonRoute
from expunge.api.problems import documented
from expunge.api.schemas import checkpoints as checkpoint_schemas
from expunge.api.schemas import parts as schemas
from expunge.api.schemas.values import IdempotencyKey, ModelPath
from expunge.api.service import CurrentService, Service
from expunge.api.uploads import ContentTooLarge, Upload, received
from expunge.api.waiting import WaitSeconds, accepted, until_final, when_waited
from expunge.api.weights import Target, is_checked, look_up, read, store
from expunge.formats.digests import CHUNK_BYTES
from expunge.registry import parts, quota, visibility
from expunge.registry.errors import DigestMismatch
from expunge.registry.objects import ObjectMissing, StoreUnavailable
from expunge.registry.tables import Party
from expunge.unlearning.catalog import EncoderSpec

SHOWN = 100
"""Missing parts in one answer: their addresses do not last."""
COMPLETED_AT_ONCE = 2
"""By one process: each reads a whole file, and the threads that answer other calls are not for that."""

_of_parties: WeakValueDictionary[str, CapacityLimiter] = WeakValueDictionary()
"""One at once for each party: it does not hold up all others."""
_completing: RunVar[CapacityLimiter] = RunVar("completing files in parts")

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", examples=[schemas.EXAMPLE_SHA256])]

router = APIRouter(tags=["checkpoints"], route_class=JsonRoute)
uploads = APIRouter(tags=["checkpoints"])


@router.post(
    "/models/{model_id}/checkpoints/parts",
    summary="Announce a checkpoint in parts",
    responses=documented(403, 404, 409, 413),
)
def announce_parts(
    model_id: ModelPath, body: schemas.PartedFile, owner: ModelOwner, service: CurrentService
) -> schemas.Parts:
    """Which parts of a large checkpoint are missing, and where to send them.

    The same call says what lacks after a connection, this service or the caller broke down: what
    has arrived stays until `expires_at`, which each call puts off. Then complete the checkpoint.
    """
    settings = service.settings
    if body.bytes > settings.max_checkpoint_bytes:
        limit = settings.max_checkpoint_bytes
        raise ContentTooLarge(f"At most {limit:,} bytes are accepted.", limit=limit)
    file, seconds = body.parted(), settings.direct_upload_seconds
    with service.sessions.begin() as session:
        visibility.one(session, visibility.own_models(owner), model_id)
        quota.room(session, owner.id, settings.stored_bytes_per_party).require(body.bytes)
        folder = parts.announce(session, owner, file, seconds=seconds)
    there = set(service.store.keys(folder.name))
    lacking = {part: size for part, size in file.sizes().items() if folder.key(part) not in there}
    missing = [
        schemas.MissingPart.of(
            part,
            size,
            f"/models/{model_id}/checkpoints/parts/{body.sha256}/{part}",
            service.store.direct_put(folder.key(part), size, part, seconds),
        )
        for part, size in list(lacking.items())[:SHOWN]
    ]
    return schemas.Parts(
        missing=missing, missing_bytes=sum(lacking.values()), expires_at=folder.expires_at
    )


@uploads.put(
    "/models/{model_id}/checkpoints/parts/{sha256}/{part_sha256}",
    status_code=204,
    summary="Send a part of a checkpoint",
    dependencies=[Depends(place)],
    responses=documented(403, 404, 409, 413),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}}
            },
        }
    },
)
async def upload_part(
    *,
    model_id: ModelPath,
    sha256: Digest,
    part_sha256: Digest,
    owner: ModelOwner,
    service: CurrentService,
    request: Request,
) -> None:
    """An announced part, its SHA-256 in the address. Sending it again changes nothing."""

    def announced() -> parts.Folder:
        with service.sessions() as session:
            visibility.one(session, visibility.own_models(owner), model_id)
            found = parts.begun(session, owner, sha256)
            parts.require_announced(session, found, part_sha256)
            return found

    folder = await run_in_threadpool(announced)
    async with received(
        request,
        space=service.space,
        limit=folder.step,
        sha256=part_sha256,
    ) as part:
        await run_in_threadpool(service.store.put, part.path, part_sha256, under=folder.name)


@router.post(
    "/models/{model_id}/checkpoints/complete",
    status_code=202,
    summary="Complete a checkpoint in parts",
    dependencies=[Depends(place)],
    responses=when_waited(checkpoint_schemas.Checkpoint) | documented(403, 404, 409, 413),
)
async def complete_checkpoint(
    *,
    model_id: ModelPath,
    body: schemas.PartedCheckpoint,
    owner: ModelOwner,
    service: CurrentService,
    wait: WaitSeconds,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> checkpoint_schemas.Checkpoint:
    """Have the parts put together, compared with what was announced, and checked as an upload in one call is.

    It takes as long as it takes to read and store the file. `409 part-missing` while a part lacks:
    announce the file again.
    """
    target = Target(owner, model_id, body.dataset_ids, idempotency_key)
    earlier, encoder = await run_in_threadpool(look_up, service, target, body.sha256)
    if earlier is None:
        async with _of_parties.setdefault(owner.id, CapacityLimiter(1)):
            first = await to_thread.run_sync(
                _complete, service, target, encoder, body.parted(), limiter=_limiter()
            )
    else:
        first = earlier
    answer = await until_final(first, lambda: read(service, owner, first.id), is_checked, wait)
    accepted(response, f"/checkpoints/{first.id}", final=is_checked(answer), waited=wait)
    return answer


def _limiter() -> CapacityLimiter:
    try:
        return _completing.get()
    except LookupError:
        limiter = CapacityLimiter(COMPLETED_AT_ONCE)
        _completing.set(limiter)
        return limiter


def _complete(
    service: Service, target: Target, encoder: EncoderSpec, file: parts.Parted
) -> checkpoint_schemas.Checkpoint:
    try:
        folder = _folder(service, target.owner, file)
        with tempfile.TemporaryDirectory(dir=service.space.folder, prefix="upload-") as scratch:
            whole = FilePath(scratch) / "whole"
            with service.space.held(whole, file.size):
                _put_together(service, file, folder, whole)
            checkpoint = store(service, target, encoder, Upload(whole, file.sha256, file.size))
    except parts.PartMissing:
        # Another call that completed it meanwhile has removed the parts.
        earlier, _ = look_up(service, target, file.sha256)
        if earlier is None:
            raise
        return earlier
    with service.sessions.begin() as session:
        keys = parts.end(session, folder)
    with suppress(StoreUnavailable):  # A sweep removes the rest then.
        for key in keys:
            service.store.delete(key)
    return checkpoint


def _folder(service: Service, owner: Party, file: parts.Parted) -> parts.Folder:
    with service.sessions() as session:
        return parts.begun(session, owner, file.sha256)


def _put_together(
    service: Service, file: parts.Parted, folder: parts.Folder, whole: FilePath
) -> None:
    hashed = hashlib.sha256()
    with whole.open("wb") as out:
        for number, (part, size) in enumerate(_in_order(file)):
            left = size
            try:
                for chunk in service.store.stream(folder.key(part)):
                    left -= len(chunk)
                    if left < 0:
                        break
                    hashed.update(chunk)
                    out.write(chunk)
            except ObjectMissing as error:
                raise parts.PartMissing(
                    f"Part {number} of {len(file.parts)} has not been received; announce the file "
                    "again to see what lacks.",
                    part=part,
                ) from error
            if left:
                _refuse(service, folder, [part])
    if hashed.hexdigest() != file.sha256:
        _refuse(service, folder, _damaged(file, whole))


def _in_order(file: parts.Parted) -> list[tuple[str, int]]:
    sizes = file.sizes()
    return [(part, sizes[part]) for part in file.parts]


def _damaged(file: parts.Parted, whole: FilePath) -> list[str]:
    """The parts that are not what their digest says; none if it is the file's digest that is wrong."""
    found = []
    with whole.open("rb") as opened:
        for part, size in _in_order(file):
            hashed = hashlib.sha256()
            for start in range(0, size, CHUNK_BYTES):
                hashed.update(opened.read(min(CHUNK_BYTES, size - start)))
            if hashed.hexdigest() != part:
                found.append(part)
    return found


def _refuse(service: Service, folder: parts.Folder, damaged: list[str]) -> None:
    for part in damaged:
        service.store.delete(folder.key(part))
    if damaged:
        raise DigestMismatch(
            f"{len(damaged)} parts are not what was announced, and are removed; announce the file "
            "again and send what lacks.",
            parts=damaged,
        )
    raise DigestMismatch("The parts together do not have the SHA-256 that was announced.")
