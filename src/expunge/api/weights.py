"""A checkpoint's file that came in, whichever way: compared with the model, stored, recorded, shown."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from expunge.api.schemas import checkpoints as schemas
from expunge.api.service import Service
from expunge.api.space import Space
from expunge.api.uploads import Upload
from expunge.formats.digests import sha256_file
from expunge.formats.tensors import TensorFileError, is_release, read_header, write_release
from expunge.registry import checkpoints, drift, models, orphans, policies, quota, visibility
from expunge.registry.errors import InvalidCheckpoint
from expunge.registry.lifecycles import CheckpointState
from expunge.registry.objects import StoreUnavailable
from expunge.registry.quota import Room
from expunge.registry.tables import Checkpoint, Model, Party
from expunge.unlearning.catalog import EncoderSpec

FORMAT = "expunge-checkpoint/1"


@dataclass(frozen=True, slots=True)
class Target:
    """What an upload is for, beside its bytes."""

    owner: Party
    model_id: str
    dataset_ids: Sequence[str]
    idempotency_key: str | None


def look_up(
    service: Service, target: Target, sha256: str
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
        answer = None if earlier is None else shown(session, model, earlier)
        return answer, EncoderSpec.model_validate(model.encoder)


def room_for(service: Service, owner: Party) -> Room:
    """How much a checkpoint may hold by the owner's quota."""
    with service.sessions() as session:
        return quota.room(session, owner.id, service.settings.stored_bytes_per_party)


def store(
    service: Service, target: Target, encoder: EncoderSpec, upload: Upload
) -> schemas.Checkpoint:
    """Store the file and what of it may leave, and record the checkpoint; a worker checks the tensors.

    Raises:
        InvalidCheckpoint: it is no checkpoint, or of another encoder; nothing is stored.
        QuotaExceeded: its owner would have more stored than allowed; nothing is left.
        StoreUnavailable: try again later.
        And what `checkpoints.add_upload` raises.
    """
    room_for(service, target.owner).require(upload.size)
    with tempfile.TemporaryDirectory(dir=service.space.folder, prefix="release-") as folder:
        try:
            _check_encoder(read_header(upload.path).metadata, encoder)
            release = _release_of(upload.path, Path(folder), service.space)
        except TensorFileError as error:
            raise InvalidCheckpoint(f"{error}.") from error
        released = upload.sha256 if release == upload.path else sha256_file(release)
        weights = checkpoints.StoredWeights(
            digest=f"sha256:{upload.sha256}",
            object_key=orphans.put(service.sessions, service.store, upload.path, upload.sha256),
            bytes=upload.size,
            release_digest=f"sha256:{released}",
            release_key=orphans.put(service.sessions, service.store, release, released),
        )
    try:
        return _recorded(service, target, weights)
    except quota.QuotaExceeded:
        with suppress(StoreUnavailable):  # A sweep removes them then.
            keys = [weights.object_key, weights.release_key]
            quota.discard(service.sessions, service.store, keys)
        raise


def _recorded(
    service: Service, target: Target, weights: checkpoints.StoredWeights
) -> schemas.Checkpoint:
    limit = service.settings.stored_bytes_per_party
    with (
        service.sessions.begin() as session,
        quota.kept(session, target.owner.id, limit),
    ):
        row = checkpoints.add_upload(
            session,
            target.owner,
            target.model_id,
            target.dataset_ids,
            weights,
            idempotency_key=target.idempotency_key,
        )
        return shown(session, session.get_one(Model, row.model_id), row)


def _release_of(path: Path, folder: Path, space: Space) -> Path:
    if is_release(path):
        return path
    release = folder / "release.safetensors"
    with space.held(release, path.stat().st_size):
        write_release(path, release)
    return release


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


def read(service: Service, owner: Party, checkpoint_id: str) -> schemas.Checkpoint:
    """The checkpoint of an own model, or NotFound."""
    with service.sessions() as session:
        row = visibility.one(session, visibility.checkpoints(owner), checkpoint_id)
        return shown(session, session.get_one(Model, row.model_id), row)


def shown(session: Session, model: Model, row: Checkpoint) -> schemas.Checkpoint:
    """The checkpoint as its model's owner sees it."""
    found = drift.of(session, row, policies.of(model.policy))
    return schemas.Checkpoint.of(row, model.head_checkpoint_id, found)


def is_checked(checkpoint: schemas.Checkpoint) -> bool:
    """Whether a worker has looked at its tensors."""
    return checkpoint.state != CheckpointState.CHECKING
