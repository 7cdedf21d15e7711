"""What keeps the record straight: the log, keys of repeatable calls, objects about to be named or destroyed."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, func
from sqlalchemy.orm import Mapped, mapped_column

from expunge.registry.tables.base import Table


class IdempotencyKey(Table):
    """A creating call that may be repeated: same key and body give the same resource."""

    __tablename__ = "idempotency_keys"

    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    resource_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class LogRow(Table):
    """What happened, appended in the transaction that made it happen; the database refuses changes to it."""

    __tablename__ = "log"

    seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    actor: Mapped[str] = mapped_column(index=True)
    """A party's id, or the part of the service that acted."""
    subject_id: Mapped[str] = mapped_column(index=True)
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
    salt: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())
    """Proofs show the leaf hashes of others' rows: without it their content could be guessed."""


class PendingObject(Table):
    """An object that is about to be stored and named: a sweep leaves it alone as long as this row counts."""

    __tablename__ = "pending_objects"

    key: Mapped[str] = mapped_column(primary_key=True)
    noted_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Counts for a grace period, for an upload."""
    lease_token: Mapped[str | None]
    """Counts as long as a job runs under this lease, for an attempt's object."""


class DoomedObject(Table):
    """An object whose end is promised, until the store has confirmed it; then its subject is destroyed."""

    __tablename__ = "doomed_objects"

    subject_id: Mapped[str] = mapped_column(primary_key=True)
    """The checkpoint or data set that is being destroyed."""
    key: Mapped[str] = mapped_column(primary_key=True)
