"""The tables. Rules that the database itself can hold (uniqueness, references, states) stand here as constraints."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from expunge.registry.lifecycles import (
    CheckpointState,
    DatasetState,
    JobState,
    RequestState,
)


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
    COMPARE = "compare"
    """Run several unlearning methods on a model's head for one removal; changes nothing."""


TRAINING_KINDS = (JobKind.PRETRAIN, JobKind.UNLEARN)
"""Kinds that write a model's head: at most one of them runs per model."""
MODEL_OWNER_KINDS = (*TRAINING_KINDS, JobKind.COMPARE)
"""Kinds whose whole reason for failing may be told: only the model's owner sees these jobs."""


class Table(DeclarativeBase):
    """Base of all tables; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own declaration
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB(none_as_null=True),
    }


def _states(column: str, states: type[StrEnum]) -> CheckConstraint:
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=column)


class Party(Table):
    """Somebody who holds keys."""

    __tablename__ = "parties"
    __table_args__ = (_states("role", Role),)

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


class Dataset(Table):
    """Samples of one owner, in shards."""

    __tablename__ = "datasets"
    __table_args__ = (
        _states("state", DatasetState),
        UniqueConstraint("owner_id", "name"),
        CheckConstraint("(state = 'sealed') = (digest IS NOT NULL)", name="sealed_digest"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), index=True)
    name: Mapped[str]
    state: Mapped[str] = mapped_column(default=DatasetState.OPEN)
    problem: Mapped[dict[str, Any] | None]
    """Why sealing refused it: code, detail and the shard's name."""
    samples: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    digest: Mapped[str | None]
    """SHA-256 over the index of all samples, fixed by sealing."""
    index_key: Mapped[str | None]
    """Object that holds the index: one JSON record a line, in order."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sealed_at: Mapped[datetime | None]

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
    object_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Grant(Table):
    """A data owner's consent that a model owner trains on a data set."""

    __tablename__ = "grants"

    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    party_id: Mapped[str] = mapped_column(ForeignKey("parties.id"), primary_key=True, index=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


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
    __table_args__ = (_states("state", CheckpointState),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", use_alter=True))
    """The job that made it; none for an upload."""
    state: Mapped[str]
    problem: Mapped[dict[str, Any] | None]
    digest: Mapped[str]
    object_key: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    release_digest: Mapped[str]
    release_key: Mapped[str]
    """What may leave the service: encoder and projector only."""
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


class Request(Table):
    """A data owner's wish that a model forgets data sets of theirs."""

    __tablename__ = "requests"
    __table_args__ = (_states("state", RequestState),)

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

    datasets: Mapped[list["RequestDataset"]] = relationship(lazy="selectin")
    job: Mapped["Job | None"] = relationship(lazy="select")

    @property
    def dataset_ids(self) -> list[str]:
        """Ids of the data sets to be forgotten."""
        return sorted(row.dataset_id for row in self.datasets)


class RequestDataset(Table):
    """One data set of a request."""

    __tablename__ = "request_datasets"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), primary_key=True, index=True)


class Job(Table):
    """Work for a worker. The row is the queue: Celery only announces that it is there."""

    __tablename__ = "jobs"
    __table_args__ = (
        _states("state", JobState),
        _states("kind", JobKind),
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
    lease_token: Mapped[str | None]
    """Secret of the running attempt: every write of that attempt names it."""
    lease_expires_at: Mapped[datetime | None]
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
    actor: Mapped[str]
    """A party's id, or the part of the service that acted."""
    subject_id: Mapped[str] = mapped_column(index=True)
    event: Mapped[str]
    detail: Mapped[dict[str, Any]]
