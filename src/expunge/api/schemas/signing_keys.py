"""The keys that the service signs with."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from expunge.evidence.succession import KnownKey
from expunge.registry import signing_keys, tables


class SigningKey(KnownKey):
    """A key that the service signs with, or has signed with."""

    retired_at: datetime | None = Field(
        description="When another key took its place; what it signed before stays valid."
    )


class SigningKeys(BaseModel):
    """All of them in the order in which they followed each other."""

    items: list[SigningKey]

    @classmethod
    def of(cls, rows: Sequence[tables.SigningKey]) -> Self:
        """As the registry has them."""
        known = signing_keys.known(rows)
        return cls(
            items=[
                SigningKey(**key.model_dump(), retired_at=row.retired_at)
                for key, row in zip(known, rows, strict=True)
            ]
        )
