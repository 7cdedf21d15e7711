"""Parties and keys."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, Name, example
from expunge.registry import parties, tables
from expunge.registry.quota import Room
from expunge.registry.tables import Role, Scope

MAX_KEY_DAYS = 3650
MAX_OVERLAP_HOURS = 30 * 24


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


Scopes = Annotated[
    list[Scope],
    Field(
        min_length=1,
        max_length=len(Scope),
        description="What the key is for: `read` what there is, `write` (make and change things), "
        "`audit` (ask the encoders), `keys` (issue, rotate, list and revoke keys).",
    ),
]


class NewKey(Body):
    """A key to be issued."""

    model_config = ConfigDict(
        json_schema_extra=example(expires_in_days=90, scopes=["read", "audit"])
    )

    expires_in_days: Annotated[
        int | None, Field(strict=True, ge=1, le=MAX_KEY_DAYS, description="Never, if left out.")
    ] = None
    scopes: Annotated[
        Scopes | None, Field(description="All that the party's role may do, if left out.")
    ] = None


class Rotation(Body):
    """How a key is replaced."""

    model_config = ConfigDict(json_schema_extra=example(overlap_hours=24))

    overlap_hours: Annotated[
        int,
        Field(
            strict=True,
            ge=0,
            le=MAX_OVERLAP_HOURS,
            description="The old secret works for so long; 0 ends it at once.",
        ),
    ] = 24


class Key(BaseModel):
    """A key without its secret."""

    id: str
    party_id: str
    scopes: list[Scope] = Field(description="What it is for, within what its party's role may do.")
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute; null: never, as yet.")
    replaces: str | None = Field(description="The key that it was rotated from.")

    @classmethod
    def of(cls, key: tables.ApiKey) -> Self:
        """The key as its party and operators may see it."""
        return cls(
            id=key.id,
            party_id=key.party_id,
            scopes=_scopes(key),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            replaces=key.replaces_id,
        )


class IssuedKey(BaseModel):
    """A new key. Its secret is shown this once: it is null when the same call is made again."""

    model_config = ConfigDict(
        json_schema_extra=example(
            id=f"key_{EXAMPLE_HEX}",
            party_id=f"pty_{EXAMPLE_HEX}",
            secret="xpk_…",  # noqa: S106 - an example
            scopes=["read", "audit"],
            created_at="2026-01-31T12:00:00Z",
            expires_at=None,
        )
    )

    id: str
    party_id: str
    secret: str | None
    scopes: list[Scope]
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
            scopes=_scopes(key),
            created_at=key.created_at,
            expires_at=key.expires_at,
        )


def _scopes(key: tables.ApiKey) -> list[Scope]:
    return list(Scope) if key.scopes is None else [Scope(each) for each in key.scopes]


class UsedKey(BaseModel):
    """The key of a call."""

    id: str
    expires_at: datetime | None
    scopes: list[Scope]

    @classmethod
    def of(cls, key: tables.ApiKey) -> Self:
        """The key as the caller may see it."""
        return cls(id=key.id, expires_at=key.expires_at, scopes=_scopes(key))


class Storage(BaseModel):
    """What a party has stored: shards, announced direct uploads, uploaded checkpoints."""

    used_bytes: int
    limit_bytes: int | None = Field(description="Null: there is none.")

    @classmethod
    def of(cls, room: Room) -> Self:
        """As the quota counts it."""
        return cls(used_bytes=room.used, limit_bytes=room.limit or None)


class Me(BaseModel):
    """Who calls, with which key, and how much of the storage is used."""

    party: Party
    key: UsedKey
    storage: Storage | None = Field(description="Null for who stores nothing.")
