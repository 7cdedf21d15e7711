"""What is asked for and the jobs that do it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, column_property, mapped_column, relationship

from expunge.registry.lifecycles import JobState, RequestState
from expunge.registry.tables.base import Table, states_check


class JobKind(StrEnum):
    """What a worker is asked to do."""

    SEAL = "seal"
    """Validate every sample of a data set and fix its digest."""
    VERIFY = "verify"
    """Load an uploaded checkpoint and compare its tensors with its header."""
    PRETRAIN = "pretrain"
    """Train a model's encoder from fresh weights."""
    UNLEARN = "unlearn"
    """Make the head of a model forget the data sets of one or several requests."""
    AUDIT = "audit"
    """Compute a black-box audit."""
    ENCODE = "encode"
    """Compute both encoders' outputs for an audit at home."""
    COMPARE = "compare"
    """Run several unlearning methods on a model's head for one removal; changes nothing."""
    REVIEW = "review"
    """Audit requests by itself: those of a removal that has ended, or past ones under a new head."""


TRAINING_KINDS = (JobKind.PRETRAIN, JobKind.UNLEARN)
"""Kinds that write a model's head: at most one of them runs per model."""
MODEL_OWNER_KINDS = (*TRAINING_KINDS, JobKind.COMPARE)
"""Kinds whose whole reason for failing may be told: only the model's owner sees these jobs."""


class RequestDataset(Table):
    """One data set of a request."""

    __tablename__ = "request_datasets"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True, index=True)


class Request(Table):
    """A data owner's wish that a model forgets data sets of theirs."""

    __tablename__ = "requests"
    __table_args__ = (states_check("state", RequestState),)

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    method: Mapped[str]
    params: Mapped[dict[str, Any]]
    state: Mapped[str]
    reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    deadline_at: Mapped[datetime] = mapped_column(server_default=text("now() + interval '1 month'"))
    """When the law expects an answer (GDPR, article 12(3))."""
    finished_at: Mapped[datetime | None]
    """When it reached its final state."""
    effective_at: Mapped[datetime | None]
    """When a head that has forgotten all of it was first in force: the end of its exposure."""

    datasets: Mapped[list[RequestDataset]] = relationship(lazy="select")
    dataset_ids: Mapped[list[str]] = column_property(
        func.array(
            select(RequestDataset.dataset_id)
            .where(RequestDataset.request_id == id)  # noqa: A003 - the column above
            .order_by(RequestDataset.dataset_id)
            .correlate_except(RequestDataset)
            .scalar_subquery(),
            type_=ARRAY(Text),
        )
    )
    """Of the data sets to be forgotten; read with the row, in the same statement."""
    job: Mapped["Job | None"] = relationship(lazy="select")


class Job(Table):
    """Work for a worker. The row is the queue: Celery only announces that it is there."""

    __tablename__ = "jobs"
    __table_args__ = (
        states_check("state", JobState),
        states_check("kind", JobKind),
        CheckConstraint(
            "(state IN ('running', 'evaluating')) = (lease_token IS NOT NULL)", name="lease"
        ),
        Index(
            "uq_jobs_one_running_per_model",
            "model_id",
            unique=True,
            postgresql_where=text(
                "state IN ('running', 'evaluating') AND kind IN ('pretrain', 'unlearn')"
            ),
        ),
        Index("ix_jobs_owner_id_claimed_at", "owner_id", "claimed_at"),
        Index(
            "ix_jobs_open",
            "due_at",
            postgresql_where=text("state IN ('queued', 'running', 'evaluating')"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str | None]
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"))
    """Whose turn it takes in the queue."""
    priority: Mapped[int] = mapped_column(default=0)
    """Of its owner's own jobs of a kind, those with more go first."""
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    """The data set that a seal job validates."""
    checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    """The upload that a verify job checks."""
    params: Mapped[dict[str, Any]]
    """What to do: method, its parameters, seed, data sets."""
    progress: Mapped[dict[str, Any] | None]
    metrics: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = mapped_column(default=0)
    """How often it was started."""
    outages: Mapped[int] = mapped_column(default=0)
    """How often it was given back because a store could not be reached."""
    failure: Mapped[dict[str, Any] | None]
    """How the last crash ended: kind, reason, words, attempt, step, crashes that got no further."""
    worker: Mapped[str | None]
    """Who holds the lease, or held it last."""
    lease_token: Mapped[str | None]
    """Secret of the running attempt: every write of that attempt names it."""
    lease_expires_at: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    """When the running attempt began."""
    seconds_used: Mapped[float] = mapped_column(default=0.0)
    """By earlier attempts together, in seconds; counts towards the time limit."""
    snapshot_key: Mapped[str | None] = mapped_column(index=True)
    """The object that the next attempt goes on from."""
    snapshot_step: Mapped[int | None]
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Not claimed before; the end of the batching window."""
    published_at: Mapped[datetime | None]
    """When its wake-up was last handed to Celery; none: not yet."""
    base_checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    result_checkpoint_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    requests: Mapped[list[Request]] = relationship(
        lazy="select", order_by="Request.id", overlaps="job"
    )
    request_ids: Mapped[list[str]] = column_property(
        func.array(
            select(Request.id)
            .where(Request.job_id == id)  # noqa: A003 - the column above
            .order_by(Request.id)
            .correlate_except(Request)
            .scalar_subquery(),
            type_=ARRAY(Text),
        ),
        deferred=True,
    )
