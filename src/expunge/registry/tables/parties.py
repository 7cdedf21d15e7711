"""Who holds keys."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Text, func
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.tables.base import Table, states_check


class Role(StrEnum):
    """What a party may do."""

    OPERATOR = "operator"
    """Runs the service: parties and keys, nothing of their content."""
    MODEL_OWNER = "model_owner"
    """Owns models, trains them, follows jobs, promotes results."""
    DATA_OWNER = "data_owner"
    """Owns data sets, asks for removal, audits what became of them."""
    AUDITOR = "auditor"
    """Acts for a data owner, within what that owner delegates."""


class Scope(StrEnum):
    """What a key is for, within what its party's role may do."""

    READ = "read"
    """Look at what there is, and follow it."""
    WRITE = "write"
    """Make and change things."""
    AUDIT = "audit"
    """Put questions to the encoders, which costs of the request's daily budget."""
    KEYS = "keys"
    """Issue, rotate, list and revoke keys, and add parties."""


class Party(Table):
    """Somebody who holds keys."""

    __tablename__ = "parties"
    __table_args__ = (states_check("role", Role),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ApiKey(Table):
    """A bearer key; only the SHA-256 of its secret is kept."""

    __tablename__ = "api_keys"
    __table_args__ = (
        CheckConstraint(
            "scopes <@ ARRAY['read', 'write', 'audit', 'keys'] AND cardinality(scopes) > 0",
            name="scopes",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    scopes: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """Values of Scope; none: all of them."""
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    replaces_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))
    """The key that it was rotated from."""

    party: Mapped[Party] = relationship(lazy="joined", innerjoin=True)
