"""A large file in parts: announced, sent, put together."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from expunge.api.schemas.values import EXAMPLE_HEX, Body, DatasetId, example
from expunge.registry.objects import DirectPut
from expunge.registry.parts import Parted

MIN_PART_BYTES = 2**20
MAX_PART_BYTES = 512 * 2**20
MAX_PARTS = 10_000
EXAMPLE_SHA256 = EXAMPLE_HEX * 2

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class PartedFile(Body):
    """A file and its parts, in order."""

    model_config = ConfigDict(
        json_schema_extra=example(
            bytes=5, sha256=EXAMPLE_SHA256, part_bytes=MIN_PART_BYTES, parts=[EXAMPLE_SHA256]
        )
    )

    bytes: int = Field(ge=1, description="Of the whole file.")
    sha256: Sha256 = Field(description="Of the whole file, in hexadecimal.")
    part_bytes: int = Field(
        ge=MIN_PART_BYTES, le=MAX_PART_BYTES, description="Of each part; the last may be shorter."
    )
    parts: list[Sha256] = Field(
        min_length=1, max_length=MAX_PARTS, description="SHA-256 of each part, in hexadecimal."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        expected = -(-self.bytes // self.part_bytes)
        if len(self.parts) != expected:
            raise ValueError(
                f"{self.bytes} bytes in parts of {self.part_bytes} are {expected} parts, not "
                f"{len(self.parts)}"
            )
        return self

    def parted(self) -> Parted:
        """As the registry knows it."""
        return Parted(self.bytes, self.sha256, self.part_bytes, self.parts)


class PartedCheckpoint(PartedFile):
    """A checkpoint whose parts have been sent."""

    model_config = ConfigDict(
        json_schema_extra=example(
            bytes=5,
            sha256=EXAMPLE_SHA256,
            part_bytes=MIN_PART_BYTES,
            parts=[EXAMPLE_SHA256],
            dataset_ids=[f"dst_{EXAMPLE_HEX}"],
        )
    )

    dataset_ids: list[DatasetId] = Field(
        default=[], description="Data sets that these weights were trained on."
    )


class DirectPart(BaseModel):
    """How to send a part to the object store: `PUT` it to `url` with exactly these `headers`."""

    url: str = Field(description="Stores this content and no other. Keep it to yourself.")
    headers: dict[str, str] = Field(description="All of them are signed.")


class MissingPart(BaseModel):
    """A part that is not there yet."""

    sha256: str
    bytes: int
    path: str = Field(description="Of this service: `PUT` the part there.")
    direct: DirectPart | None = Field(
        description="Or there; null where the store takes nothing from others."
    )

    @classmethod
    def of(cls, sha256: str, size: int, path: str, put: DirectPut | None) -> Self:
        """The part and the ways to send it."""
        direct = None if put is None else DirectPart(url=put.url, headers=put.headers)
        return cls(sha256=sha256, bytes=size, path=path, direct=direct)


class Parts(BaseModel):
    """What lacks of a file."""

    missing: list[MissingPart] = Field(
        description="The next ones to send; announce again after them. Empty: all are there."
    )
    missing_bytes: int = Field(description="Of all that are missing.")
    expires_at: datetime = Field(
        description="Send and complete the file until then, or announce it again before."
    )
