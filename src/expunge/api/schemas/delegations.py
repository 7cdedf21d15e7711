"""Delegations: who may audit for whom."""

from datetime import datetime
from typing import Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from expunge.api.schemas.values import EXAMPLE_HEX, Body, DatasetId, PartyId, example
from expunge.registry import tables

MAX_DATASETS = 1000


class NewDelegation(Body):
    """Which auditor may see and audit which of your data sets, and until when."""

    model_config = ConfigDict(
        json_schema_extra=example(
            auditor_id=f"pty_{EXAMPLE_HEX}",
            dataset_ids=[f"dst_{EXAMPLE_HEX}"],
            expires_at="2026-12-31T12:00:00Z",
        )
    )

    auditor_id: PartyId
    dataset_ids: list[DatasetId] = Field(min_length=1, max_length=MAX_DATASETS)
    expires_at: AwareDatetime = Field(description="Within a year.")


class Delegation(BaseModel):
    """Leave to audit; `withdrawn_at` is set when it was taken back before its end."""

    id: str = Field(examples=[f"dlg_{EXAMPLE_HEX}"])
    owner_id: str
    auditor_id: str
    dataset_ids: list[str]
    expires_at: datetime
    withdrawn_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: tables.Delegation) -> Self:
        """The delegation as both its parties see it."""
        return cls(
            id=row.id,
            owner_id=row.owner_id,
            auditor_id=row.auditor_id,
            dataset_ids=row.dataset_ids,
            expires_at=row.expires_at,
            withdrawn_at=row.withdrawn_at,
            created_at=row.created_at,
        )
