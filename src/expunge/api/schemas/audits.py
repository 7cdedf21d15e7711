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
    ViewsSeed,
    WorkState,
    example,
)
from expunge.registry import audits, subsets, tables
from expunge.registry.tables import AuditPurpose

Level = Literal["encoder", "projector", "image_text"]
Which = Literal["before", "after", "gap"]

MAX_MATRIX_SIZE = 256
MAX_VIEWS = 32
MAX_SAMPLE_KEYS = 5_000
MAX_DRAWN = 1_000_000
MAX_KEY_CHARS = 300
"""A data set's id, a slash and a key."""

SampleKey = Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS)]


class Draw(Body):
    """A random part that anybody can draw again."""

    samples: Annotated[
        int,
        Field(strict=True, ge=1, le=MAX_DRAWN, description="How many; all, if there are fewer."),
    ]
    seed: Seed = 0

    def parsed(self) -> subsets.Draw:
        """As the registry takes it."""
        return subsets.Draw(self.samples, self.seed)


class NewAudit(Body):
    """What to audit. Own samples are compared with retained and control images, of which only aggregates are told."""

    model_config = ConfigDict(
        json_schema_extra=example(request_id=f"req_{EXAMPLE_HEX}", matrix_size=64, views=10)
    )

    request_id: RequestId
    dataset_ids: list[DatasetId] | None = Field(
        default=None, description="Some of the request's data sets; all, if left out."
    )
    sample_keys: (
        Annotated[list[SampleKey], Field(min_length=1, max_length=MAX_SAMPLE_KEYS)] | None
    ) = Field(
        default=None,
        description="Only these samples: `key`, or `dst_…/key` where there are several data sets.",
    )
    draw: Draw | None = Field(
        default=None, description="Only a random part of what the other members leave."
    )
    matrix_size: Annotated[
        int, Field(strict=True, ge=1, le=MAX_MATRIX_SIZE, description="Samples in the matrices.")
    ] = 64
    views: Annotated[
        int, Field(strict=True, ge=2, le=MAX_VIEWS, description="Random views a sample.")
    ] = 10
    seed: ViewsSeed = None

    def asked(self) -> audits.Asked:
        """As the registry takes it."""
        return audits.Asked(
            request_id=self.request_id,
            protocol=audits.Protocol(self.views, self.seed, self.matrix_size),
            dataset_ids=None if self.dataset_ids is None else tuple(self.dataset_ids),
            sample_keys=None if self.sample_keys is None else tuple(self.sample_keys),
            draw=None if self.draw is None else self.draw.parsed(),
        )


class Compared(BaseModel):
    """One of the two checkpoints that an audit compares."""

    checkpoint_id: str
    digest: str

    @classmethod
    def of(cls, row: tables.Checkpoint) -> Self:
        """Name and digest of the weights."""
        return cls(checkpoint_id=row.id, digest=row.digest)


class Audit(BaseModel):
    """A black-box audit of one request."""

    id: str = Field(examples=[f"aud_{EXAMPLE_HEX}"])
    request_id: str
    purpose: AuditPurpose = Field(
        description="`asked` by a party, or made by the service: by the `protocol` fixed with the "
        "request, or the same way under a `later_head`."
    )
    dataset_ids: list[str]
    sample_keys: list[str] | None
    draw: Draw | None
    matrix_size: int
    views: int
    seed: int
    state: WorkState
    reason: str | None
    report: dict[str, Any] | None = Field(
        description="Verdict, its test and power, and per level the statistics of own, retained and "
        "control samples."
    )
    before: Compared
    after: Compared
    pictures: dict[Level, dict[Which, str]] | None = Field(
        description="Addresses of the heat maps; `.svg`, `.csv` and `.npy` instead of `.png` too."
    )
    page: str | None = Field(description="Address of the report as one HTML page.")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Audit) -> Self:
        """The audit as its owner sees it."""
        return cls(
            id=row.id,
            request_id=row.request_id,
            purpose=AuditPurpose(row.purpose),
            dataset_ids=row.asked["dataset_ids"],
            sample_keys=row.asked.get("sample_keys"),
            draw=row.asked.get("draw"),
            matrix_size=row.asked["matrix_size"],
            views=row.asked["views"],
            seed=row.asked["seed"],
            state=WORK_STATES[row.state],
            reason=row.reason or row.job.reason,
            report=row.report,
            before=Compared.of(row.before),
            after=Compared.of(row.after),
            pictures=_pictures(row),
            page=None if audits.bundle_key(row) is None else f"/audits/{row.id}/report.html",
            created_at=row.created_at,
            finished_at=row.finished_at,
        )


def _pictures(row: tables.Audit) -> dict[Level, dict[Which, str]] | None:
    if row.report is None or audits.bundle_key(row) is None:
        return None
    return {
        level: {which: f"/audits/{row.id}/{which}.png?level={level}" for which in get_args(Which)}
        for level in get_args(Level)
        if level in row.report["levels"]
    }
