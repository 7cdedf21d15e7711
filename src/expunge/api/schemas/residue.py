"""What still exists of a request's data."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from expunge.api.schemas.values import EXAMPLE_HEX
from expunge.registry import residue


class Residue(BaseModel):
    """One thing that still holds something of a request's data, or several alike."""

    what: residue.What = Field(
        description="`record` is what stays as evidence, `outside` what the service cannot see."
    )
    id: str | None = Field(
        examples=[f"ckp_{EXAMPLE_HEX}"], description="Null where the reader is not to know it."
    )
    digest: str | None
    count: int = Field(description="How many alike this stands for.")
    where: str = Field(examples=["object store"])
    state: str = Field(examples=["kept"])
    why: str
    until: datetime | None = Field(description="It is destroyed then; of several the latest.")
    condition: str | None = Field(description="What has to happen before it goes.")

    @classmethod
    def of(cls, found: residue.Residue) -> Self:
        """The same as a schema."""
        return cls(
            what=found.what,
            id=found.id,
            digest=found.digest,
            count=found.count,
            where=found.where,
            state=found.state,
            why=found.why,
            until=found.until,
            condition=found.condition,
        )


class RequestResidue(BaseModel):
    """All that is left of a request's data."""

    request_id: str = Field(examples=[f"req_{EXAMPLE_HEX}"])
    items: list[Residue]
