"""Removal requests."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import (
    EXAMPLE_HEX,
    Body,
    DatasetId,
    ModelId,
    Progress,
    Reason,
    example,
)
from expunge.registry import lifecycles, tables
from expunge.registry.lifecycles import RequestState
from expunge.registry.reviews import Findings

MAX_METHOD_CHARS = 100
COUNTING = ("step", "steps", "images_per_second")
"""Parts of a job's progress that tell how many samples it trains on."""


class NewRequest(Body):
    """What a model is to forget, and how."""

    model_config = ConfigDict(
        json_schema_extra=example(
            model_id=f"mdl_{EXAMPLE_HEX}",
            dataset_ids=[f"dst_{EXAMPLE_HEX}"],
            method="alignment_calibration",
            params={"epochs": 10, "beta": 8.0},
        )
    )

    model_id: ModelId
    dataset_ids: list[DatasetId]
    method: str = Field(default="alignment_calibration", max_length=MAX_METHOD_CHARS)
    params: dict[str, Any] = Field(
        default={}, description="Of the method; `GET /methods` lists names, defaults and bounds."
    )


class Rejection(Body):
    """Why a request is refused; its owner reads it."""

    model_config = ConfigDict(json_schema_extra=example(reason="the data is needed as evidence"))

    reason: Reason


class Result(BaseModel):
    """What came of a completed request; time in seconds."""

    before_checkpoint_id: str
    before_digest: str
    checkpoint_id: str
    digest: str
    seconds: float

    @classmethod
    def of(cls, job: tables.Job, digests: Mapping[str, str]) -> Self | None:
        """The result of the request's job, if it has one; `digests` by checkpoint id."""
        before, after = job.base_checkpoint_id, job.result_checkpoint_id
        if before is None or after is None or job.metrics is None:
            return None
        return cls(
            before_checkpoint_id=before,
            before_digest=digests[before],
            checkpoint_id=after,
            digest=digests[after],
            seconds=job.metrics["seconds"],
        )


class Request(BaseModel):
    """A removal request. Shows nothing of other owners whose requests share its job."""

    id: str = Field(examples=[f"req_{EXAMPLE_HEX}"])
    owner_id: str
    model_id: str
    dataset_ids: list[str]
    method: str
    params: dict[str, Any] = Field(description="Completed with the method's defaults.")
    state: RequestState
    reason: str | None
    progress: Progress | None = Field(description="While it runs.")
    result: Result | None = Field(description="Once it is completed.")
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None = Field(description="When it reached its final state.")
    deadline_at: datetime = Field(description="A month after it was made (GDPR, article 12(3)).")
    overdue: bool = Field(
        description="Past the deadline and still waited for: not final, or completed and not in "
        "force."
    )
    effective_at: datetime | None = Field(
        description="When a head that has forgotten all of it first came into force."
    )
    exposure_seconds: float | None = Field(
        description="How long the head has held the data since the request was made, until "
        "`effective_at` or until now; null for a request that ended without a result."
    )
    protocol_audit_id: str | None = Field(
        description="The service's own audit, by the protocol fixed when the request was made; "
        "null where you cannot read it."
    )
    alerts: int = Field(description="How many `GET /alerts` lists about it.")

    @classmethod
    def of(
        cls,
        row: tables.Request,
        digests: Mapping[str, str],
        found: Findings,
        only: Collection[str] | None = None,
    ) -> Self:
        """The request with what its owner may know of its job; `digests` by checkpoint id.

        With `only`, of its data sets no others are shown.
        """
        completed = row.state == RequestState.COMPLETED and row.job is not None
        return cls(
            id=row.id,
            owner_id=row.owner_id,
            model_id=row.model_id,
            dataset_ids=[each for each in row.dataset_ids if only is None or each in only],
            method=row.method,
            params=row.params,
            state=RequestState(row.state),
            reason=row.reason,
            progress=visible_progress(row),
            result=Result.of(row.job, digests) if completed and row.job else None,
            created_at=row.created_at,
            updated_at=row.updated_at,
            finished_at=row.finished_at,
            deadline_at=row.deadline_at,
            overdue=_is_awaited(row) and datetime.now(UTC) > row.deadline_at,
            effective_at=row.effective_at,
            exposure_seconds=_exposure_seconds(row),
            protocol_audit_id=found.protocol_audit_id,
            alerts=found.alerts,
        )


def _is_awaited(row: tables.Request) -> bool:
    """Whether its owner still waits for the data to be gone."""
    if row.state == RequestState.COMPLETED:
        return row.effective_at is None
    return not lifecycles.is_final(lifecycles.REQUEST, row.state)


def _exposure_seconds(row: tables.Request) -> float | None:
    until = row.effective_at or (datetime.now(UTC) if _is_awaited(row) else None)
    return None if until is None else max(0.0, (until - row.created_at).total_seconds())


def visible_progress(row: tables.Request) -> Progress | None:
    """How far the request's job is, while it runs; nothing that counts the samples of others."""
    if row.state != RequestState.RUNNING or row.job is None or row.job.progress is None:
        return None
    return Progress.model_validate(row.job.progress | dict.fromkeys(COUNTING))
