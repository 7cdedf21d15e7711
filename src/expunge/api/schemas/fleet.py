"""Workers and queues, as an operator sees them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from expunge.api.schemas.values import EXAMPLE_HEX
from expunge.registry import fleet, tables
from expunge.registry.tables import JobKind

WorkerState = Literal["idle", "busy", "stopping", "gone"]


class HeldJob(BaseModel):
    """A job that a worker is at. Whose it is and what it trains on is not told."""

    id: str = Field(examples=[f"job_{EXAMPLE_HEX}"])
    kind: str = Field(description="A worker of a newer version may do other kinds than this one.")
    attempt: int
    seconds: float = Field(description="Since this attempt began.")
    share_done: float | None = Field(description="Of its steps; null where that is not known.")
    eta_seconds: float | None = Field(description="The estimate of what is left.")

    @classmethod
    def of(cls, row: tables.Job, now: datetime) -> Self:
        """A running job."""
        progress = row.progress or {}
        return cls(
            id=row.id,
            kind=row.kind,
            attempt=row.attempt,
            seconds=(now - (row.claimed_at or now)).total_seconds(),
            share_done=_share_done(progress),
            eta_seconds=progress.get("eta_seconds"),
        )


class Worker(BaseModel):
    """A worker process."""

    name: str = Field(description="As jobs and the log name it.", examples=["train-17.5e1f@gpu-1"])
    role: str
    state: WorkerState = Field(
        description="`gone`: nothing was heard of it lately; a day later it is forgotten."
    )
    kinds: list[str] = Field(description="Of jobs that it does.")
    labels: list[str] = Field(description="What models may ask for.")
    device: str
    device_name: str | None
    memory_bytes: int | None = Field(description="Of its GPU; null for a CPU.")
    shares_device_with: list[str] = Field(
        description="Live workers of the same role on the same GPU, which is meant for one."
    )
    jobs: list[HeldJob] = Field(description="A review may make room for another job.")
    host: str
    pid: int
    version: str
    started_at: datetime
    last_seen_at: datetime
    silent_seconds: float = Field(description="Since its last sign of life.")

    @classmethod
    def of(
        cls,
        row: tables.Worker,
        held: Sequence[tables.Job],
        others: Sequence[str],
        now: datetime,
    ) -> Self:
        """A worker with the jobs that it holds."""
        if not fleet.is_live(row, now):
            state: WorkerState = "gone"
        elif row.stopping:
            state = "stopping"
        else:
            state = "busy" if held else "idle"
        return cls(
            name=row.name,
            role=row.role,
            state=state,
            kinds=row.kinds,
            labels=row.labels,
            device=row.device,
            device_name=row.device_name,
            memory_bytes=row.memory_bytes,
            shares_device_with=list(others),
            jobs=[HeldJob.of(job, now) for job in held],
            host=row.host,
            pid=row.pid,
            version=row.version,
            started_at=row.started_at,
            last_seen_at=row.last_seen_at,
            silent_seconds=(now - row.last_seen_at).total_seconds(),
        )


class Queue(BaseModel):
    """Jobs of one kind that have not ended."""

    kind: JobKind
    waiting: int = Field(description="Due and not begun.")
    later: int = Field(description="In a batching window, or in the pause after a crash.")
    running: int
    oldest_seconds: float | None = Field(description="How long the oldest of `waiting` is due.")


class Unserved(BaseModel):
    """Jobs that wait for a worker that is not there."""

    reason: str = Field(examples=["no live worker has the label a100"])
    jobs: int


class Fleet(BaseModel):
    """Who works, and what there is to do."""

    workers: list[Worker]
    queues: list[Queue] = Field(description="One for every kind of job that this version knows.")
    unserved: list[Unserved] = Field(description="Due jobs that nobody who is there can do.")

    @classmethod
    def of(
        cls,
        workers: Sequence[tables.Worker],
        held: dict[str, list[tables.Job]],
        queues: Sequence[fleet.Queue],
        unserved: dict[str, int],
        now: datetime,
    ) -> Self:
        """As the registry has them."""
        shared = fleet.sharing(workers, now)
        return cls(
            workers=[
                Worker.of(row, held.get(row.name, ()), shared.get(row.name, ()), now)
                for row in workers
            ],
            queues=[Queue.model_validate(each, from_attributes=True) for each in queues],
            unserved=[Unserved(reason=reason, jobs=n) for reason, n in sorted(unserved.items())],
        )


def _share_done(progress: dict[str, Any]) -> float | None:
    """Of a training run by its steps, of a comparison by its runs."""
    for done, total in (("step", "steps"), ("done", "total")):
        if progress.get(total):
            return float(progress[done] / progress[total])
    return None
