"""What was measured: audits and comparisons that somebody asked for, audits by the service itself, alerts."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column, relationship

from expunge.registry.lifecycles import JobState
from expunge.registry.tables.base import Table, states_check, strings_index
from expunge.registry.tables.models import Checkpoint
from expunge.registry.tables.work import Job


class AuditPurpose(StrEnum):
    """Why an audit was made."""

    ASKED = "asked"
    """A party asked for it; its job does nothing else."""
    PROTOCOL = "protocol"
    """By the service when the request was carried out, as fixed when it was made."""
    LATER_HEAD = "later_head"
    """By the service when another head came into force afterwards, by the same protocol."""


class AlertKind(StrEnum):
    """What an alert warns of."""

    RELEARNED = "relearned"
    """A later head treats the forgotten samples as ones that it was trained on."""


class Audit(Table):
    """A black-box audit of one request."""

    __tablename__ = "audits"
    __table_args__ = (
        states_check("purpose", AuditPurpose),
        UniqueConstraint("job_id", "request_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    party_id: Mapped[str | None] = mapped_column(ForeignKey("parties.id"), index=True)
    """Who asked: the owner, or an auditor with a delegation; none: the service by itself."""
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    """Of its own; audits by the service share their review's."""
    purpose: Mapped[str] = mapped_column(default=AuditPurpose.ASKED)
    settings: Mapped[dict[str, Any] | None]
    """The protocol of an audit by the service; one that was asked for has it in its job."""
    reason: Mapped[str | None]
    """Why the service could not make an audit of its own, in words."""
    settled_at: Mapped[datetime | None]
    """When an audit by the service was recorded, or given up with its reason."""
    before_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    after_checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    report: Mapped[dict[str, Any] | None]
    objects: Mapped[dict[str, Any] | None]
    """Object keys of matrices and pictures by level, matrix and format."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    job: Mapped[Job] = relationship(lazy="joined", innerjoin=True)
    before: Mapped[Checkpoint] = relationship(foreign_keys=before_checkpoint_id, lazy="select")
    after: Mapped[Checkpoint] = relationship(foreign_keys=after_checkpoint_id, lazy="select")

    @property
    def asked(self) -> dict[str, Any]:
        """Data sets, samples, views and seed."""
        return self.job.params if self.settings is None else self.settings

    @property
    def state(self) -> str:
        """A JobState: that of its job until an audit by the service is settled."""
        if self.settled_at is None:
            return self.job.state
        return JobState.SUCCEEDED if self.reason is None else JobState.FAILED

    @property
    def finished_at(self) -> datetime | None:
        """When its state became final."""
        return self.settled_at or self.job.finished_at


strings_index("ix_audits_objects", Audit.objects)


class Alert(Table):
    """A warning to a request's owner and its model's owner; one per request and checkpoint."""

    __tablename__ = "alerts"
    __table_args__ = (
        states_check("kind", AlertKind),
        UniqueConstraint("request_id", "checkpoint_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    """The head that it is about."""
    kind: Mapped[str]
    detail: Mapped[dict[str, Any]]
    """The test's numbers: p-value, effect, samples. Nothing of a single sample."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    acknowledged_at: Mapped[datetime | None]
    acknowledged_by: Mapped[str | None] = mapped_column(ForeignKey("parties.id"))


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
    """Object keys of tables, chart and spread of scores by file name."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    job: Mapped[Job] = relationship(lazy="joined", innerjoin=True)


strings_index("ix_comparisons_objects", Comparison.objects)
