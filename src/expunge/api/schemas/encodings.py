"""Encodings: both encoders' outputs for own samples, with a receipt."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.audits import MAX_VIEWS, Compared, Draw, SampleKey
from expunge.api.schemas.values import (
    EXAMPLE_HEX,
    WORK_STATES,
    Body,
    DatasetId,
    RequestId,
    ViewsSeed,
    WorkState,
    example,
)
from expunge.registry import encodings, tables


class NewEncoding(Body):
    """Which own samples are encoded, under how many views of which seed."""

    model_config = ConfigDict(json_schema_extra=example(request_id=f"req_{EXAMPLE_HEX}", views=10))

    request_id: RequestId
    dataset_ids: list[DatasetId] | None = Field(
        default=None, description="Some of the request's data sets; all, if left out."
    )
    sample_keys: (
        Annotated[list[SampleKey], Field(min_length=1, max_length=encodings.MAX_SAMPLES)] | None
    ) = Field(
        default=None,
        description="Only these samples: `key`, or `dst_…/key` where there are several data sets.",
    )
    draw: Draw | None = Field(
        default=None, description="Only a random part of what the other members leave."
    )
    views: Annotated[
        int, Field(strict=True, ge=2, le=MAX_VIEWS, description="Random views a sample.")
    ] = 10
    seed: ViewsSeed = None

    def asked(self) -> encodings.Asked:
        """As the registry takes it."""
        return encodings.Asked(
            request_id=self.request_id,
            views=self.views,
            seed=self.seed,
            dataset_ids=None if self.dataset_ids is None else tuple(self.dataset_ids),
            sample_keys=None if self.sample_keys is None else tuple(self.sample_keys),
            draw=None if self.draw is None else self.draw.parsed(),
        )


class Receipt(BaseModel):
    """What the service answers for: which outputs came from which weights and inputs."""

    statement: dict[str, Any]
    envelope: dict[str, Any] | None = Field(
        description="The statement as canonical JSON in a DSSE envelope, signed with a key of "
        "`GET /signing-keys`; null where the service has none."
    )


class Encoding(BaseModel):
    """Outputs of the encoders before and after a request, for an audit at home."""

    id: str = Field(examples=[f"enc_{EXAMPLE_HEX}"])
    request_id: str
    dataset_ids: list[str]
    sample_keys: list[str] | None
    draw: Draw | None
    views: int
    seed: int | None = Field(description="Of the views; null where they were made at home.")
    state: WorkState
    reason: str | None = Field(description="Why it failed: names the views that were refused.")
    before: Compared
    after: Compared
    receipt: Receipt | None = Field(description="Once it has succeeded.")
    outputs: str | None = Field(description="Address of the outputs, an npz file.")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Encoding) -> Self:
        """The encoding as who asked for it, and the samples' owner, see it."""
        params = row.job.params
        return cls(
            id=row.id,
            request_id=row.request_id,
            dataset_ids=params["dataset_ids"],
            sample_keys=params["sample_keys"],
            draw=params["draw"],
            views=params["views"],
            seed=params["seed"],
            state=WORK_STATES[row.job.state],
            reason=row.job.reason,
            before=Compared.of(row.before),
            after=Compared.of(row.after),
            receipt=None if row.receipt is None else Receipt.model_validate(row.receipt),
            outputs=None if row.outputs_key is None else f"/encodings/{row.id}/outputs.npz",
            created_at=row.created_at,
            finished_at=row.job.finished_at,
        )
