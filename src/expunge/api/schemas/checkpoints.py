"""Checkpoints of a model."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from expunge.api.schemas.models import Drift
from expunge.api.schemas.values import EXAMPLE_HEX, Fault
from expunge.registry import tables
from expunge.registry.lifecycles import CheckpointState


class Checkpoint(BaseModel):
    """Weights of a model at one point of its life; size in bytes."""

    id: str = Field(examples=[f"ckp_{EXAMPLE_HEX}"])
    model_id: str
    parent_id: str | None
    job_id: str | None = Field(description="The job that made it; none for an upload.")
    state: CheckpointState
    problem: Fault | None = Field(
        description="Why its check failed, or why the policy did not promote it."
    )
    digest: str = Field(description="Of the whole file, which stays in the service.")
    release_digest: str = Field(description="Of the part that may leave: encoder and projector.")
    bytes: int
    trained_on: list[str]
    forgotten: list[str]
    is_head: bool
    drift: Drift
    created_at: datetime
    promoted_at: datetime | None = Field(description="When it first became the head.")
    destroyed_at: datetime | None = Field(description="When its weights were gone.")

    @classmethod
    def of(
        cls, row: tables.Checkpoint, head_checkpoint_id: str | None, drift: dict[str, Any]
    ) -> Self:
        """The checkpoint as the model's owner sees it; `drift` as `registry.drift.of` says."""
        return cls(
            id=row.id,
            model_id=row.model_id,
            parent_id=row.parent_id,
            job_id=row.job_id,
            state=CheckpointState(row.state),
            problem=_fault(row),
            digest=row.digest,
            release_digest=row.release_digest,
            bytes=row.bytes,
            trained_on=row.trained_on,
            forgotten=row.forgotten,
            is_head=row.id == head_checkpoint_id,
            drift=Drift.model_validate(drift),
            created_at=row.created_at,
            promoted_at=row.promoted_at,
            destroyed_at=row.destroyed_at,
        )


class Ancestry(BaseModel):
    """A checkpoint's place in its model's history, and whether one can go (back) to it."""

    id: str = Field(examples=[f"ckp_{EXAMPLE_HEX}"])
    parent_id: str | None = Field(description="What it was made from; null for a full training.")
    job_id: str | None = Field(description="The job that made it; none for an upload.")
    state: CheckpointState
    made_at: datetime
    promoted_at: datetime | None = Field(description="When it first became the head.")
    destroyed_at: datetime | None = Field(description="When its weights were gone.")
    is_head: bool
    trained_datasets: int = Field(description="Data sets it was ever trained on.")
    forgotten_datasets: int = Field(description="How many of them it has forgotten.")
    problem: Fault | None = Field(
        description="Why its check failed, or why the policy did not promote it."
    )
    drift: Drift
    promotable: bool = Field(description="Whether `POST /checkpoints/{id}/promote` would do it.")
    reason: str | None = Field(description="Why not.")

    @classmethod
    def of(
        cls,
        row: tables.Checkpoint,
        *,
        head_checkpoint_id: str | None,
        drift: dict[str, Any],
        objection: str | None,
    ) -> Self:
        """The checkpoint in its model's history; `objection` against making it the head."""
        return cls(
            id=row.id,
            parent_id=row.parent_id,
            job_id=row.job_id,
            state=CheckpointState(row.state),
            made_at=row.created_at,
            promoted_at=row.promoted_at,
            destroyed_at=row.destroyed_at,
            is_head=row.id == head_checkpoint_id,
            trained_datasets=len(row.trained_on),
            forgotten_datasets=len(row.forgotten),
            problem=_fault(row),
            drift=Drift.model_validate(drift),
            promotable=objection is None,
            reason=objection,
        )


def _fault(row: tables.Checkpoint) -> Fault | None:
    return None if row.problem is None else Fault.model_validate(row.problem)
