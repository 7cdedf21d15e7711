"""Data sets, their shards, and who may train on them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.lifecycles import DatasetState
from expunge.registry.tables.base import Table, states_check


class Dataset(Table):
    """Samples of one owner, in shards."""

    __tablename__ = "datasets"
    __table_args__ = (
        states_check("state", DatasetState),
        Index(
            "uq_datasets_owner_id_name",
            "owner_id",
            "name",
            unique=True,
            postgresql_where=text("name <> ''"),
        ),
        CheckConstraint(
            "state IN ('deleting', 'deleted') OR (state = 'sealed') = (digest IS NOT NULL)",
            name="sealed_digest",
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    name: Mapped[str]
    """For people; empty once it is deleted, since names may be personal."""
    state: Mapped[str] = mapped_column(default=DatasetState.OPEN)
    problem: Mapped[dict[str, Any] | None]
    """Why sealing refused it: code, detail and the shard's name."""
    samples: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    digest: Mapped[str | None]
    """SHA-256 over the index of all samples, fixed by sealing."""
    index_key: Mapped[str | None] = mapped_column(index=True)
    """Object that holds the index: one JSON record a line, in order."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sealed_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """When the store had confirmed that its objects are gone."""

    shards: Mapped[list["Shard"]] = relationship(order_by="Shard.name", lazy="selectin")
    grants: Mapped[list["Grant"]] = relationship(order_by="Grant.created_at", lazy="select")


class Shard(Table):
    """One uploaded tar of a data set."""

    __tablename__ = "shards"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    digest: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    samples: Mapped[int]
    object_key: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DirectUpload(Table):
    """What its owner sends to the object store directly; it becomes a shard once it is checked."""

    __tablename__ = "direct_uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    name: Mapped[str]
    """Of the coming shard."""
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    """What was announced, in hexadecimal."""
    samples: Mapped[int | None]
    """How many the checked shard has; null until it is recorded."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    """Until then it may be sent and completed."""


class Grant(Table):
    """A data owner's consent that a model owner trains on a data set."""

    __tablename__ = "grants"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), primary_key=True, index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
