"""Shards that owners send to the object store themselves. Their bytes pass here only to be checked."""

import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends

from expunge.api.auth import Owner, place
from expunge.api.bodies import JsonRoute
from expunge.api.problems import documented
from expunge.api.schemas import datasets as schemas
from expunge.api.schemas.values import DatasetPath, IdempotencyKey, UploadPath
from expunge.api.service import CurrentService, Service
from expunge.api.shards import check_name, recorded, room_for, stored
from expunge.api.uploads import ContentTooLarge, Upload
from expunge.registry import direct_uploads, quota
from expunge.registry.datasets import StoredShard
from expunge.registry.errors import DigestMismatch, Invalid
from expunge.registry.objects import ObjectDamaged, ObjectMissing, StoreUnavailable, fetch
from expunge.registry.tables import DirectUpload, Party

MAX_PUT_BYTES = 5 * 2**30
"""Of one PUT, by the protocol of S3."""
COMPLETED_AT_ONCE = 4
"""By one process: each reads a whole shard, and the threads that answer other calls are not for that."""
COMPLETED_FOR_ONE = 2
"""Of one party: it does not hold up all others."""

router = APIRouter(tags=["datasets"], route_class=JsonRoute)
_completing: RunVar[CapacityLimiter] = RunVar("completing direct uploads")
_of_parties: WeakValueDictionary[str, CapacityLimiter] = WeakValueDictionary()


@router.post(
    "/datasets/{dataset_id}/uploads",
    status_code=201,
    summary="Announce a direct upload",
    responses=documented(403, 404, 409, 413),
)
def announce_upload(
    dataset_id: DatasetPath,
    body: schemas.NewUpload,
    owner: Owner,
    service: CurrentService,
    idempotency_key: IdempotencyKey = None,
) -> schemas.Upload:
    """Where to send a shard, so that it does not pass through this service: `PUT` it to `url` with `headers`.

    Then complete the upload; both until `expires_at`. `409 direct-upload-unavailable` where the
    service has no store that owners reach: upload the shard here.
    """
    check_name(body.name)
    limit = min(service.settings.max_shard_bytes, MAX_PUT_BYTES)
    if body.bytes > limit:
        raise ContentTooLarge(f"At most {limit:,} bytes are accepted.", limit=limit)
    with (
        service.sessions.begin() as session,
        quota.kept(session, owner.id, service.settings.stored_bytes_per_party),
    ):
        upload = direct_uploads.announce(
            session,
            owner,
            dataset_id,
            direct_uploads.Announced(body.name, body.bytes, body.sha256),
            seconds=service.settings.direct_upload_seconds,
            idempotency_key=idempotency_key,
        )
        seconds = max(1.0, direct_uploads.seconds_left(session, upload))
        put = service.store.direct_put(
            direct_uploads.key(upload), upload.bytes, upload.sha256, seconds
        )
        if put is None:
            raise direct_uploads.DirectUploadUnavailable(
                "This store takes uploads through the service: PUT the shard to "
                f"/datasets/{dataset_id}/shards/{body.name}."
            )
        return schemas.Upload.of(upload, put)


@router.post(
    "/datasets/{dataset_id}/uploads/{upload_id}/complete",
    status_code=201,
    summary="Complete a direct upload",
    dependencies=[Depends(place)],
    responses=documented(403, 404, 409),
)
async def complete_upload(
    dataset_id: DatasetPath, upload_id: UploadPath, owner: Owner, service: CurrentService
) -> schemas.Shard:
    """Have what was sent read, compared with what was announced, and recorded as the shard of that name.

    It is checked as a shard that is uploaded here is, so a large one takes as long as it takes to
    read it. What breaks a rule is removed; a corrected one may be sent until `expires_at` if it is
    what was announced. Completing again changes nothing.
    """
    async with _of_parties.setdefault(owner.id, CapacityLimiter(COMPLETED_FOR_ONE)):
        return await to_thread.run_sync(
            _complete, service, owner, dataset_id, upload_id, limiter=_limiter()
        )


def _limiter() -> CapacityLimiter:
    try:
        return _completing.get()
    except LookupError:
        limiter = CapacityLimiter(COMPLETED_AT_ONCE)
        _completing.set(limiter)
        return limiter


def _complete(service: Service, owner: Party, dataset_id: str, upload_id: str) -> schemas.Shard:
    def completed() -> tuple[DirectUpload, schemas.Shard | None]:
        with service.sessions() as session:
            upload = direct_uploads.one(session, owner, dataset_id, upload_id)
            direct_uploads.require_open(session, upload)
        return upload, schemas.Shard.of_upload(upload)

    upload, answer = completed()
    if answer is not None:
        return answer
    room_for(service, owner, dataset_id, upload.name)
    try:
        shard = _checked(service, upload)
    except direct_uploads.NothingReceived:
        # Another call that completed it meanwhile has removed what was sent.
        _, answer = completed()
        if answer is None:
            raise
        return answer
    record = partial(
        direct_uploads.record,
        owner=owner,
        dataset_id=dataset_id,
        upload_id=upload_id,
        shard=shard,
    )
    recorded(service, owner, dataset_id, shard, record)
    with suppress(StoreUnavailable):  # A sweep removes it then.
        service.store.delete(direct_uploads.key(upload))
    return schemas.Shard.of(shard)


def _checked(service: Service, upload: DirectUpload) -> StoredShard:
    with tempfile.TemporaryDirectory(dir=service.space.folder, prefix="upload-") as folder:
        try:
            received = _received(service, upload, Path(folder) / "shard")
            return stored(service, upload.name, received)
        except Invalid:
            service.store.delete(direct_uploads.key(upload))
            raise


def _received(service: Service, upload: DirectUpload, path: Path) -> Upload:
    key = direct_uploads.key(upload)
    try:
        size = service.store.size(key)
        if size != upload.bytes:
            raise DigestMismatch(
                f"{size:,} bytes were received, {upload.bytes:,} were announced; send them again."
            )
        with service.space.held(path, size):
            fetch(service.store, key, path)
    except ObjectMissing as error:
        raise direct_uploads.NothingReceived(
            f"The store has received nothing of upload {upload.id}; send it first."
        ) from error
    except ObjectDamaged as error:
        raise DigestMismatch(
            f"The {upload.bytes:,} bytes received do not have SHA-256 {upload.sha256}, which was "
            "announced; send them again."
        ) from error
    return Upload(path, upload.sha256, upload.bytes)
