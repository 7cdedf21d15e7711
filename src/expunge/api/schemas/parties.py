"""Parties and keys."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, Name, example
from expunge.registry import parties, tables
from expunge.registry.tables import Role

MAX_KEY_DAYS = 3650


class NewParty(Body):
    """A party to be added."""

    model_config = ConfigDict(json_schema_extra=example(name="Ada", role="data_owner"))

    name: Name
    role: Role


class Party(BaseModel):
    """Somebody who holds keys."""

    id: str
    name: str
    role: Role
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Party) -> Self:
        """The party as its own."""
        return cls(id=row.id, name=row.name, role=Role(row.role), created_at=row.created_at)


class NewKey(Body):
    """A key to be issued."""

    model_config = ConfigDict(json_schema_extra=example(expires_in_days=90))

    expires_in_days: Annotated[
        int | None, Field(strict=True, ge=1, le=MAX_KEY_DAYS, description="Never, if left out.")
    ] = None


class IssuedKey(BaseModel):
    """A new key. Its secret is shown this once: it is null when the same call is made again."""

    model_config = ConfigDict(
        json_schema_extra=example(
            id=f"key_{EXAMPLE_HEX}",
            party_id=f"pty_{EXAMPLE_HEX}",
            secret="xpk_…",  # noqa: S106 - an example
            created_at="2026-01-31T12:00:00Z",
            expires_at=None,
        )
    )

    id: str
    party_id: str
    secret: str | None
    created_at: datetime
    expires_at: datetime | None

    @classmethod
    def of(cls, issued: parties.IssuedKey) -> Self:
        """The key with its secret."""
        key = issued.key
        return cls(
            id=key.id,
            party_id=key.party_id,
            secret=issued.secret,
            created_at=key.created_at,
            expires_at=key.expires_at,
        )


class UsedKey(BaseModel):
    """The key of a call."""

    id: str
    expires_at: datetime | None


class Me(BaseModel):
    """Who calls, with which key."""

    party: Party
    key: UsedKey
