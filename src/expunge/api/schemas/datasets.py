"""Data sets, their shards, samples and grants."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, Fault, Name, PartyId, example
from expunge.registry import tables
from expunge.registry.datasets import StoredShard
from expunge.registry.lifecycles import DatasetState
from expunge.registry.objects import DirectPut


class NewDataset(Body):
    """A data set to be opened."""

    model_config = ConfigDict(json_schema_extra=example(name="holiday pictures"))

    name: Name


class Shard(BaseModel):
    """One stored tar file of a data set; size in bytes."""

    name: str
    digest: str = Field(
        examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15"]
    )
    bytes: int
    samples: int

    @classmethod
    def of(cls, row: tables.Shard | StoredShard) -> Self:
        """The shard as its data set's readers see it."""
        return cls(name=row.name, digest=row.digest, bytes=row.bytes, samples=row.samples)

    @classmethod
    def of_upload(cls, row: tables.DirectUpload) -> Self | None:
        """The shard that an upload made, if it is complete."""
        if row.samples is None:
            return None
        digest = f"sha256:{row.sha256}"
        return cls(name=row.name, digest=digest, bytes=row.bytes, samples=row.samples)


class NewUpload(Body):
    """A shard that is going to be sent to the object store."""

    model_config = ConfigDict(
        json_schema_extra=example(name="train-00.tar", bytes=1_048_576, sha256="9f" * 32)
    )

    name: str = Field(description="Of the shard; ends in `.tar`.")
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of all bytes, in hexadecimal.")


class Upload(BaseModel):
    """How to send a shard to the object store: with `method` to `url`, and exactly these `headers`."""

    id: str = Field(examples=[f"upl_{EXAMPLE_HEX}"])
    name: str
    bytes: int
    sha256: str
    method: Literal["PUT"]
    url: str = Field(description="Stores this content and no other. Keep it to yourself.")
    headers: dict[str, str] = Field(description="All of them are signed.")
    expires_at: datetime = Field(description="Send it and complete the upload until then.")

    @classmethod
    def of(cls, row: tables.DirectUpload, put: DirectPut) -> Self:
        """The upload with a fresh URL."""
        return cls(
            id=row.id,
            name=row.name,
            bytes=row.bytes,
            sha256=row.sha256,
            method="PUT",
            url=put.url,
            headers=put.headers,
            expires_at=row.expires_at,
        )


class Dataset(BaseModel):
    """A data set: metadata only, no sample."""

    id: str = Field(examples=[f"dst_{EXAMPLE_HEX}"])
    owner_id: str
    name: str = Field(description="Empty once it is deleted.")
    state: DatasetState
    problem: Fault | None = Field(description="Why sealing refused it.")
    samples: int
    bytes: int
    digest: str | None = Field(description="Over all samples; fixed by sealing.")
    shards: list[Shard]
    granted_to: list[str] | None = Field(
        description="Model owners who may train on it; shown to its owner only."
    )
    created_at: datetime
    sealed_at: datetime | None
    deleted_at: datetime | None = Field(description="When its samples were gone.")

    @classmethod
    def of(cls, row: tables.Dataset, reader: tables.Party) -> Self:
        """The data set as `reader` may see it."""
        own = row.owner_id == reader.id
        return cls(
            id=row.id,
            owner_id=row.owner_id,
            name=row.name,
            state=DatasetState(row.state),
            problem=Fault.model_validate(row.problem) if own and row.problem else None,
            samples=row.samples,
            bytes=row.bytes,
            digest=row.digest,
            shards=[Shard.of(each) for each in row.shards],
            granted_to=[each.party_id for each in row.grants] if own else None,
            created_at=row.created_at,
            sealed_at=row.sealed_at,
            deleted_at=row.deleted_at,
        )


class Sample(BaseModel):
    """One sample of a sealed data set; width and height in pixels, size in bytes."""

    key: str
    shard: str
    sha256: str
    width: int
    height: int
    label: int | None
    caption: str | None
    size: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """The sample from its index record."""
        return cls.model_validate(record)


class NewGrant(Body):
    """A model owner who may train on the data set."""

    model_config = ConfigDict(json_schema_extra=example(party_id=f"pty_{EXAMPLE_HEX}"))

    party_id: PartyId


class Grant(BaseModel):
    """An owner's consent to training."""

    dataset_id: str
    party_id: str
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Grant) -> Self:
        """The grant."""
        return cls(dataset_id=row.dataset_id, party_id=row.party_id, created_at=row.created_at)
