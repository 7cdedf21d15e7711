"""Who holds keys."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import ForeignKey, func
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

    id: Mapped[str] = mapped_column(primary_key=True)
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    secret_sha256: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    party: Mapped[Party] = relationship(lazy="joined", innerjoin=True)
