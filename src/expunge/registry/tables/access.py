"""Who may audit for whom, and what was asked of the encoders: delegations, queries, encodings."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.tables.base import Table, states_check
from expunge.registry.tables.models import Checkpoint
from expunge.registry.tables.work import Job


class QueryKind(StrEnum):
    """What was asked of the encoders before and after a request."""

    AUDIT = "audit"
    """Numbers about the samples and a verdict."""
    ENCODE = "encode"
    """The outputs of both encoders themselves."""


class Delegation(Table):
    """A data owner's leave for an auditor to audit some of the owner's data sets until a day."""

    __tablename__ = "delegations"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    auditor_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    expires_at: Mapped[datetime]
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    datasets: Mapped[list["DelegationDataset"]] = relationship(lazy="selectin")

    @property
    def dataset_ids(self) -> list[str]:
        """Ids of the data sets that the auditor may look at."""
        return sorted(row.dataset_id for row in self.datasets)


class DelegationDataset(Table):
    """One data set of a delegation."""

    __tablename__ = "delegation_datasets"

    delegation_id: Mapped[str] = mapped_column(ForeignKey("delegations.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True, index=True)


class Query(Table):
    """One admitted audit or encoding: what the budget of a request and a day is counted from."""

    __tablename__ = "queries"
    __table_args__ = (
        states_check("kind", QueryKind),
        Index("ix_queries_request_id_at", "request_id", "at"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"))
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"))
    kind: Mapped[str]
    samples: Mapped[int]
    views: Mapped[int]
    """Of each sample."""
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Encoding(Table):
    """Outputs of the encoders before and after a request for its owner; its state is that of its job."""

    __tablename__ = "encodings"

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    """Who asked: the owner, or an auditor with a delegation."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    before_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    after_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    views_key: Mapped[str | None] = mapped_column(index=True)
    """Object with the views that were made at home, if they were."""
    outputs_key: Mapped[str | None] = mapped_column(index=True)
    """Object with the outputs of both encoders."""
    receipt: Mapped[dict[str, Any] | None]
    """What the service answers for: a DSSE envelope; the bare statement where it has no key."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    job: Mapped[Job] = relationship(lazy="joined", innerjoin=True)
    before: Mapped[Checkpoint] = relationship(foreign_keys=before_checkpoint_id, lazy="select")
    after: Mapped[Checkpoint] = relationship(foreign_keys=after_checkpoint_id, lazy="select")
