"""What happened to a request or a job, in order."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field

from expunge.registry import tables
from expunge.registry.ids import Prefix

SHARED = ("reason",)
"""Details of a request's log: nothing that its job shares with the requests of others."""
OWNERS = (*SHARED, "kind", "words", "attempt", "worker", "priority", "memory")
"""Details of a job's log, which the model's owner alone reads."""


class LogEntry(BaseModel):
    """One thing that happened."""

    position: int = Field(description="1 is the first thing that happened to this resource.")
    at: datetime
    actor: str = Field(
        examples=["you", "model owner", "service"],
        description="`you`, `model owner`, `service` (by itself), or the id of a party.",
    )
    event: str = Field(
        examples=["queued"],
        description="A state that was entered, or what else happened.",
    )
    reason: str | None = None
    kind: str | None = Field(
        default=None,
        description="Of a job: what it does, in its first entry; afterwards how an attempt ended.",
    )
    words: str | None = Field(default=None, description="Of a job: what a failed attempt said.")
    attempt: int | None = Field(default=None, description="Of a job.")
    worker: str | None = Field(default=None, description="Of a job: who held its lease.")
    priority: int | None = Field(default=None, description="Of a job: what it was set to.")
    memory: str | None = Field(
        default=None,
        examples=["recompute"],
        description="Of a job that ran out of it: what the next attempt does about it.",
    )

    @classmethod
    def of(
        cls, row: tables.LogRow, position: int, actors: dict[str, str], details: tuple[str, ...]
    ) -> Self:
        """The row with the details of these names; `actors` are the parties that the reader may know."""
        known = {
            name: row.detail[name] for name in details if row.detail.get(name) not in (None, "")
        }
        return cls(
            position=position,
            at=row.at,
            actor=actors.get(row.actor) or _unnamed(row.actor),
            event=row.event,
            **known,
        )


def _unnamed(actor: str) -> str:
    return "another party" if actor.startswith(f"{Prefix.PARTY}_") else "service"
