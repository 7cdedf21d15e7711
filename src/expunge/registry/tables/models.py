"""Models, and the checkpoints that they have had."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.lifecycles import CheckpointState
from expunge.registry.tables.base import Table, states_check


class Model(Table):
    """An encoder and its history of checkpoints; `encoder` is the catalog's EncoderSpec."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("owner_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    name: Mapped[str]
    encoder: Mapped[dict[str, Any]]
    policy: Mapped[dict[str, Any]]
    """Batching window in seconds and how results are promoted."""
    head_checkpoint_id: Mapped[str | None] = mapped_column(
        ForeignKey("checkpoints.id", use_alter=True)
    )
    control_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    """Images never trained on: what an audit compares the owner's own samples with."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Checkpoint(Table):
    """Weights of a model at one point of its life; the object never changes."""

    __tablename__ = "checkpoints"
    __table_args__ = (states_check("state", CheckpointState),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", use_alter=True))
    """The job that made it; none for an upload."""
    state: Mapped[str]
    problem: Mapped[dict[str, Any] | None]
    digest: Mapped[str]
    object_key: Mapped[str] = mapped_column(index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    release_digest: Mapped[str]
    release_key: Mapped[str] = mapped_column(index=True)
    """What may leave the service: encoder and projector only."""
    drift: Mapped[dict[str, Any] | None]
    """What removals since the last full training have added up to."""
    promoted_at: Mapped[datetime | None]
    """When it first became its model's head."""
    destroyed_at: Mapped[datetime | None]
    """When the store had confirmed that its objects are gone."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    datasets: Mapped[list["CheckpointDataset"]] = relationship(lazy="selectin")

    @property
    def trained_on(self) -> list[str]:
        """Ids of all data sets that this checkpoint or an ancestor was trained on."""
        return sorted(row.dataset_id for row in self.datasets)

    @property
    def forgotten(self) -> list[str]:
        """Ids of the data sets of `trained_on` that it has been made to forget."""
        return sorted(row.dataset_id for row in self.datasets if row.forgotten)

    @property
    def retained(self) -> list[str]:
        """Ids of the data sets of `trained_on` that it has not forgotten."""
        return sorted(row.dataset_id for row in self.datasets if not row.forgotten)


class CheckpointDataset(Table):
    """A data set that a checkpoint was trained on, and whether it was forgotten since."""

    __tablename__ = "checkpoint_datasets"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True, index=True)
    forgotten: Mapped[bool]
