"""The lives of data sets, checkpoints, requests and jobs: which states there are and which may follow. Rules only."""

from collections.abc import Mapping
from enum import StrEnum


class DatasetState(StrEnum):
    """Life of a data set."""

    OPEN = "open"
    """Shards may be added and replaced."""
    SEALING = "sealing"
    """A worker validates every sample."""
    SEALED = "sealed"
    """Fixed for ever: it may be trained on, forgotten and audited."""
    INVALID = "invalid"
    """A sample broke a rule; replacing a shard opens it again."""
    DELETING = "deleting"
    """Its owner deleted it; nothing may use it, and its objects are being removed."""
    DELETED = "deleted"
    """The store confirmed that its samples are gone; the row stays as evidence."""


class CheckpointState(StrEnum):
    """Life of a checkpoint."""

    CHECKING = "checking"
    """Uploaded; a worker compares its tensors with its header."""
    READY = "ready"
    """Usable."""
    INVALID = "invalid"
    """Its tensors do not fit its header."""
    DESTROYING = "destroying"
    """It held forgotten data for long enough; nothing may use it, and its objects are being removed."""
    DESTROYED = "destroyed"
    """The store confirmed that its weights are gone; the row stays as evidence."""


class RequestState(StrEnum):
    """Life of a removal request."""

    RECEIVED = "received"
    """Durable; nobody has decided yet."""
    APPROVED = "approved"
    """The model's policy, or its owner, said yes."""
    QUEUED = "queued"
    """Part of a job that waits for a worker."""
    RUNNING = "running"
    """Its job runs."""
    COMPLETED = "completed"
    """The job's result is recorded."""
    FAILED = "failed"
    """The job failed; the reason says why."""
    CANCELLED = "cancelled"
    """Withdrawn before its job started."""
    REJECTED = "rejected"
    """The model owner said no."""


class JobState(StrEnum):
    """Life of a job."""

    QUEUED = "queued"
    """Waits for a worker."""
    RUNNING = "running"
    """A worker holds its lease."""
    EVALUATING = "evaluating"
    """Trained; the result is being measured."""
    SUCCEEDED = "succeeded"
    """Its result is recorded."""
    FAILED = "failed"
    """It will not be tried again; the reason says why."""
    CANCELLED = "cancelled"
    """Stopped on demand."""


DATASET: Mapping[str, frozenset[str]] = {
    DatasetState.OPEN: frozenset({DatasetState.SEALING, DatasetState.DELETING}),
    DatasetState.SEALING: frozenset({DatasetState.SEALED, DatasetState.INVALID, DatasetState.OPEN}),
    DatasetState.INVALID: frozenset(
        {DatasetState.OPEN, DatasetState.SEALING, DatasetState.DELETING}
    ),
    DatasetState.SEALED: frozenset({DatasetState.DELETING}),
    DatasetState.DELETING: frozenset({DatasetState.DELETED}),
    DatasetState.DELETED: frozenset(),
}
CHECKPOINT: Mapping[str, frozenset[str]] = {
    CheckpointState.CHECKING: frozenset({CheckpointState.READY, CheckpointState.INVALID}),
    CheckpointState.READY: frozenset({CheckpointState.DESTROYING}),
    CheckpointState.INVALID: frozenset({CheckpointState.DESTROYING}),
    CheckpointState.DESTROYING: frozenset({CheckpointState.DESTROYED}),
    CheckpointState.DESTROYED: frozenset(),
}
REQUEST: Mapping[str, frozenset[str]] = {
    RequestState.RECEIVED: frozenset(
        {RequestState.APPROVED, RequestState.REJECTED, RequestState.CANCELLED}
    ),
    RequestState.APPROVED: frozenset({RequestState.QUEUED, RequestState.CANCELLED}),
    RequestState.QUEUED: frozenset(
        {RequestState.RUNNING, RequestState.CANCELLED, RequestState.FAILED}
    ),
    RequestState.RUNNING: frozenset(
        {
            RequestState.COMPLETED,
            RequestState.FAILED,
            RequestState.CANCELLED,
            RequestState.QUEUED,
        }
    ),
    RequestState.COMPLETED: frozenset(),
    RequestState.FAILED: frozenset(),
    RequestState.CANCELLED: frozenset(),
    RequestState.REJECTED: frozenset(),
}
JOB: Mapping[str, frozenset[str]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.RUNNING: frozenset(
        {
            JobState.EVALUATING,
            JobState.SUCCEEDED,
            JobState.FAILED,
            JobState.CANCELLED,
            JobState.QUEUED,
        }
    ),
    JobState.EVALUATING: frozenset(
        {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.QUEUED}
    ),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def origins(life: Mapping[str, frozenset[str]], target: str) -> list[str]:
    """The states from which `target` may be entered."""
    return sorted(state for state, following in life.items() if target in following)


def is_final(life: Mapping[str, frozenset[str]], state: str) -> bool:
    """Whether nothing follows the state."""
    return not life[state]
