"""What was measured for somebody: audits and comparisons, each by a job of its own."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.tables.base import Table
from expunge.registry.tables.models import Checkpoint
from expunge.registry.tables.work import Job


class Audit(Table):
    """A black-box audit of one request by its owner; its state is that of its job."""

    __tablename__ = "audits"

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    before_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    after_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    report: Mapped[dict[str, Any] | None]
    objects: Mapped[dict[str, Any] | None]
    """Object keys of matrices and pictures by level, matrix and format."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    job: Mapped[Job] = relationship(lazy="joined", innerjoin=True)
    before: Mapped[Checkpoint] = relationship(foreign_keys=before_checkpoint_id, lazy="select")
    after: Mapped[Checkpoint] = relationship(foreign_keys=after_checkpoint_id, lazy="select")


class Comparison(Table):
    """Unlearning methods side by side on one checkpoint for one removal; its state is that of its job."""

    __tablename__ = "comparisons"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    """The model's head when the comparison was asked for."""
    settings: Mapped[dict[str, Any]]
    """What is compared: data sets, candidates, seeds, Retrain."""
    result: Mapped[dict[str, Any] | None]
    objects: Mapped[dict[str, Any] | None]
    """Object keys of tables, chart and per-sample scores by file name."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    job: Mapped[Job] = relationship(lazy="joined", innerjoin=True)
