"""Training jobs, as the model's owner sees them."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, Progress, Reason, example
from expunge.registry import tables
from expunge.registry.lifecycles import JobState
from expunge.registry.tables import JobKind
from expunge.registry.waiting import MAX_PRIORITY


class Cancellation(Body):
    """Why a job is ended."""

    model_config = ConfigDict(json_schema_extra=example(reason="wrong data set"))

    reason: Reason | None = None


class JobChange(Body):
    """What of a waiting job changes."""

    model_config = ConfigDict(json_schema_extra=example(priority=5))

    priority: Annotated[
        int,
        Field(
            strict=True,
            ge=-MAX_PRIORITY,
            le=MAX_PRIORITY,
            description="Of your own jobs of a kind, those with more go first.",
        ),
    ]


class Failure(BaseModel):
    """How the last attempt that did not end well ended; the job may be tried again."""

    kind: str = Field(examples=["out-of-memory"])
    reason: str
    words: str = Field(description="The last that was heard of it.")
    attempt: int
    step: int = Field(description="Up to where its last snapshot was.")
    crashes: int | None = Field(
        default=None, description="In a row that got no further; null if it was the end."
    )
    recompute: bool = Field(
        default=False,
        description="An attempt ran out of memory: the next one makes activations anew in its "
        "backward pass, which takes less memory and more time, and gives the same weights.",
    )


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
    priority: int
    attempt: int = Field(description="How often it was started.")
    outages: int = Field(description="How often it was given back because a store was away.")
    worker: str | None = Field(description="Who holds its lease, or held it last.")
    failure: Failure | None
    snapshot_step: int | None = Field(description="The next attempt would go on from here.")
    seconds_used: float = Field(description="By attempts that have ended, together.")
    progress: Progress | None
    metrics: dict[str, Any] | None = Field(
        description="Seconds, steps, images per second, device, precision, losses by epoch."
    )
    base_checkpoint_id: str | None
    result_checkpoint_id: str | None
    request_ids: list[str]
    created_at: datetime
    due_at: datetime = Field(
        description="Not started before: the end of the batching window, or of a pause."
    )
    started_at: datetime | None
    finished_at: datetime | None
    waiting_for: str | None = Field(
        description="What keeps a queued job from being done by any worker that is there.",
        examples=["no live worker has the label a100"],
    )

    @classmethod
    def of(cls, row: tables.Job, waiting_for: str | None = None) -> Self:
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
            priority=row.priority,
            attempt=row.attempt,
            outages=row.outages,
            worker=row.worker,
            failure=None if row.failure is None else Failure.model_validate(row.failure),
            snapshot_step=row.snapshot_step,
            seconds_used=row.seconds_used,
            progress=None if row.progress is None else Progress.model_validate(row.progress),
            metrics=_measured(row),
            base_checkpoint_id=row.base_checkpoint_id,
            result_checkpoint_id=row.result_checkpoint_id,
            request_ids=row.request_ids,
            created_at=row.created_at,
            due_at=row.due_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            waiting_for=waiting_for,
        )


def _measured(row: tables.Job) -> dict[str, Any] | None:
    """The metrics without the manifest, which has a call of its own."""
    if row.metrics is None:
        return None
    return {name: value for name, value in row.metrics.items() if name != "manifest"}
