"""Training jobs, as the model's owner sees them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Progress
from expunge.registry import tables
from expunge.registry.lifecycles import JobState
from expunge.registry.tables import JobKind


class Job(BaseModel):
    """One pre-training or unlearning job."""

    id: str = Field(examples=[f"job_{EXAMPLE_HEX}"])
    kind: JobKind
    model_id: str
    state: JobState
    reason: str | None
    method: str | None = Field(description="Of unlearning; none for pre-training.")
    params: dict[str, Any]
    seed: int
    attempt: int = Field(description="How often it was started.")
    progress: Progress | None
    metrics: dict[str, Any] | None = Field(
        description="Seconds, steps, images per second, device, precision, losses by epoch."
    )
    base_checkpoint_id: str | None
    result_checkpoint_id: str | None
    request_ids: list[str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Job) -> Self:
        """The whole job."""
        return cls(
            id=row.id,
            kind=JobKind(row.kind),
            model_id=str(row.model_id),
            state=JobState(row.state),
            reason=row.reason,
            method=row.params.get("method"),
            params=row.params["params"],
            seed=row.params["seed"],
            attempt=row.attempt,
            progress=None if row.progress is None else Progress.model_validate(row.progress),
            metrics=row.metrics,
            base_checkpoint_id=row.base_checkpoint_id,
            result_checkpoint_id=row.result_checkpoint_id,
            request_ids=[each.id for each in row.requests],
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
