"""Checkpoints of a model."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

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
    problem: Fault | None = Field(description="Why its check failed.")
    digest: str = Field(description="Of the whole file, which stays in the service.")
    release_digest: str = Field(description="Of the part that may leave: encoder and projector.")
    bytes: int
    trained_on: list[str]
    forgotten: list[str]
    is_head: bool
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Checkpoint, head_checkpoint_id: str | None) -> Self:
        """The checkpoint as the model's owner sees it."""
        return cls(
            id=row.id,
            model_id=row.model_id,
            parent_id=row.parent_id,
            job_id=row.job_id,
            state=CheckpointState(row.state),
            problem=None if row.problem is None else Fault.model_validate(row.problem),
            digest=row.digest,
            release_digest=row.release_digest,
            bytes=row.bytes,
            trained_on=row.trained_on,
            forgotten=row.forgotten,
            is_head=row.id == head_checkpoint_id,
            created_at=row.created_at,
        )
