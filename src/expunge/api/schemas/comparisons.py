"""Comparisons of unlearning methods."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from expunge.api.schemas.values import (
    EXAMPLE_HEX,
    WORK_STATES,
    DatasetId,
    ModelId,
    Progress,
    WorkState,
    example,
)
from expunge.registry import tables
from expunge.registry.comparisons import Plan, Search
from expunge.registry.jobs import LIVE_STATES

TableFormat = Literal["json", "csv", "md"]


class NewComparison(Plan):
    """What would be forgotten, and the ways to do it that are to be compared."""

    model_config = ConfigDict(
        json_schema_extra=example(
            model_id=f"mdl_{EXAMPLE_HEX}",
            dataset_ids=[f"dst_{EXAMPLE_HEX}"],
            methods=[
                {"method": "alignment_calibration", "grid": {"beta": [0.0, 8.0]}},
                {"method": "fine_tune", "params": {"epochs": 5}},
            ],
            with_retrain=True,
            retrain_params={"epochs": 200},
            seeds=[0, 1, 2],
        )
    )

    model_id: ModelId
    dataset_ids: list[DatasetId]

    def plan(self) -> Plan:
        """What is to be run."""
        return Plan(**{name: getattr(self, name) for name in Plan.model_fields})


class Candidate(BaseModel):
    """One method with all its parameters."""

    label: str
    method: str
    params: dict[str, Any]


class Settings(BaseModel):
    """What is compared, every parameter filled in."""

    candidates: list[Candidate]
    search: Search | None
    with_retrain: bool
    retrain_params: dict[str, Any] | None
    seeds: list[int]
    relearn: bool
    keep_best: bool
    protocol: str


class RunProgress(BaseModel):
    """Where a running comparison is; a run is one setting with one seed. Times in seconds."""

    done: int
    total: int
    label: str = Field(description="What runs now.")
    seed: int | None
    training: Progress | None = Field(description="Inside that run, while it trains.")
    eta_seconds: float | None = Field(description="As if all runs took equally long.")


class ComparisonSummary(BaseModel):
    """A comparison without its numbers, as lists show it."""

    id: str = Field(examples=[f"cmp_{EXAMPLE_HEX}"])
    model_id: str
    checkpoint_id: str = Field(description="The model's head when it was asked for.")
    dataset_ids: list[str] = Field(description="What would be forgotten.")
    control_dataset_id: str = Field(description="The test set: images never trained on.")
    settings: Settings
    state: WorkState
    reason: str | None
    progress: RunProgress | None = Field(description="While it runs.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, row: tables.Comparison) -> Self:
        """The comparison as the model's owner sees it."""
        live = row.job.state in LIVE_STATES and row.job.progress is not None
        return cls(
            id=row.id,
            model_id=row.model_id,
            checkpoint_id=row.checkpoint_id,
            dataset_ids=row.settings["dataset_ids"],
            control_dataset_id=row.settings["control_dataset_id"],
            settings=Settings.model_validate(row.settings),
            state=WORK_STATES[row.job.state],
            reason=row.job.reason,
            progress=RunProgress.model_validate(row.job.progress) if live else None,
            created_at=row.created_at,
            started_at=row.job.started_at,
            finished_at=row.job.finished_at,
            **cls.more(row),
        )

    @classmethod
    def more(cls, row: tables.Comparison) -> dict[str, Any]:
        """What a subclass shows beside this."""
        return {}


class Comparison(ComparisonSummary):
    """A comparison with its result."""

    result: dict[str, Any] | None = Field(
        description="Once it has succeeded: rows of measures with gaps, failures, and the "
        "recommended setting with the reason; `recommended` is null if every setting failed."
    )
    files: dict[str, str] | None = Field(
        description="Addresses of tables, chart and spread of scores by file name."
    )

    @classmethod
    def more(cls, row: tables.Comparison) -> dict[str, Any]:
        """Result and files."""
        files = {name: f"/comparisons/{row.id}/{name}" for name in row.objects or {}}
        return {"result": row.result, "files": files or None}
