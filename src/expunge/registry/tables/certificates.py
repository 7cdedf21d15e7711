"""What the service vouches for with its name: its signing keys, and the certificates signed with them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from expunge.registry.tables.base import Table


class SigningKey(Table):
    """The public half of a key that the service signs with, or has signed with."""

    __tablename__ = "signing_keys"
    __table_args__ = (
        # One key is in use at a time.
        UniqueConstraint("retired_at", postgresql_nulls_not_distinct=True),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """SHA-256 of its SubjectPublicKeyInfo."""
    pem: Mapped[str]
    """The key itself, as text."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]
    """When another key took its place; none: it is in use."""
    introduced_by: Mapped[dict[str, Any] | None]
    """Signed by the key before: that this one follows it. None: it was the first."""


class Certificate(Table):
    """What was done for a request, signed; the database refuses changes to it."""

    __tablename__ = "certificates"
    __table_args__ = (UniqueConstraint("request_id", "edition"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"))
    edition: Mapped[int]
    """Counts from 1; the newest says most."""
    envelope: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
