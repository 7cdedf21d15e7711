"""Audits of completed requests."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import (
    EXAMPLE_HEX,
    WORK_STATES,
    Body,
    DatasetId,
    RequestId,
    Seed,
    WorkState,
    example,
)
from expunge.registry import tables

Level = Literal["encoder", "projector"]
Which = Literal["before", "after", "gap"]

MAX_MATRIX_SIZE = 256
MAX_VIEWS = 32


class NewAudit(Body):
    """What to audit. Uses own samples and the model's control images only."""

    model_config = ConfigDict(
        json_schema_extra=example(request_id=f"req_{EXAMPLE_HEX}", matrix_size=64, views=10)
    )

    request_id: RequestId
    dataset_ids: list[DatasetId] | None = Field(
        default=None, description="Some of the request's data sets; all, if left out."
    )
    matrix_size: Annotated[
        int, Field(strict=True, ge=1, le=MAX_MATRIX_SIZE, description="Samples in the matrices.")
    ] = 64
    views: Annotated[
        int, Field(strict=True, ge=2, le=MAX_VIEWS, description="Random views a sample.")
    ] = 10
    seed: Seed = 0

    def settings(self) -> dict[str, int]:
        """What the answer repeats."""
        return {"matrix_size": self.matrix_size, "views": self.views, "seed": self.seed}


class Compared(BaseModel):
    """One of the two checkpoints that an audit compares."""

    checkpoint_id: str
    digest: str

    @classmethod
    def of(cls, row: tables.Checkpoint) -> Self:
        """Name and digest of the weights."""
        return cls(checkpoint_id=row.id, digest=row.digest)


class Audit(BaseModel):
    """A black-box audit of one request by its owner."""

    id: str = Field(examples=[f"aud_{EXAMPLE_HEX}"])
    request_id: str
    dataset_ids: list[str]
    matrix_size: int
    views: int
    seed: int
    state: WorkState
    reason: str | None
    report: dict[str, Any] | None = Field(
        description="Forgetting score, negative alignment, control, contrast and verdict."
    )
    before: Compared
    after: Compared
    pictures: dict[Level, dict[Which, str]] | None = Field(
        description="Addresses of the heat maps; `.csv` and `.npy` instead of `.png` give numbers."
    )
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Audit) -> Self:
        """The audit as its owner sees it."""
        return cls(
            id=row.id,
            request_id=row.request_id,
            dataset_ids=row.job.params["dataset_ids"],
            matrix_size=row.job.params["matrix_size"],
            views=row.job.params["views"],
            seed=row.job.params["seed"],
            state=WORK_STATES[row.job.state],
            reason=row.job.reason,
            report=row.report,
            before=Compared.of(row.before),
            after=Compared.of(row.after),
            pictures=_pictures(row),
            created_at=row.created_at,
            finished_at=row.job.finished_at,
        )


def _pictures(row: tables.Audit) -> dict[Level, dict[Which, str]] | None:
    if row.objects is None:
        return None
    return {
        level: {which: f"/audits/{row.id}/{which}.png?level={level}" for which in get_args(Which)}
        for level in get_args(Level)
        if level in row.objects
    }
