"""Values that several subjects share: identifiers, names, digests."""

from typing import Annotated, Any, Literal

from fastapi import Header, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from expunge.registry.ids import Prefix
from expunge.registry.lifecycles import JobState

EXAMPLE_HEX = "01980f2e5a7b7c3d9e1f2a3b4c5d6e7f"
MAX_NAME_CHARS = 200
MAX_REASON_CHARS = 500


def _pattern(prefix: Prefix) -> str:
    return f"^{prefix.value}_[0-9a-f]{{32}}$"


def _path(prefix: Prefix) -> Any:
    return Path(pattern=_pattern(prefix), examples=[f"{prefix.value}_{EXAMPLE_HEX}"])


PartyId = Annotated[str, StringConstraints(pattern=_pattern(Prefix.PARTY))]
DatasetId = Annotated[str, StringConstraints(pattern=_pattern(Prefix.DATASET))]
ModelId = Annotated[str, StringConstraints(pattern=_pattern(Prefix.MODEL))]
RequestId = Annotated[str, StringConstraints(pattern=_pattern(Prefix.REQUEST))]

PartyPath = Annotated[str, _path(Prefix.PARTY)]
KeyPath = Annotated[str, _path(Prefix.KEY)]
DatasetPath = Annotated[str, _path(Prefix.DATASET)]
UploadPath = Annotated[str, _path(Prefix.UPLOAD)]
ModelPath = Annotated[str, _path(Prefix.MODEL)]
CheckpointPath = Annotated[str, _path(Prefix.CHECKPOINT)]
RequestPath = Annotated[str, _path(Prefix.REQUEST)]
JobPath = Annotated[str, _path(Prefix.JOB)]
AuditPath = Annotated[str, _path(Prefix.AUDIT)]
ComparisonPath = Annotated[str, _path(Prefix.COMPARISON)]
DelegationPath = Annotated[str, _path(Prefix.DELEGATION)]
EncodingPath = Annotated[str, _path(Prefix.ENCODING)]
AlertPath = Annotated[str, _path(Prefix.ALERT)]

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_NAME_CHARS,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="For people; unique among what you own.",
    ),
]
Reason = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_REASON_CHARS,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="In words, for whoever it concerns.",
    ),
]
Seed = Annotated[
    int,
    Field(strict=True, ge=0, lt=2**63, description="Same seed, same hardware: same result."),
]
ViewsSeed = Annotated[
    Seed | None,
    Field(description="Of the views; that of the service's own audits of the model, if left out."),
]

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Repeat a call safely: the same key and body give the same resource, for at "
        "least a day.",
    ),
]

WorkState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
"""Of an audit or a comparison: what its job's state means to who asked for it."""

WORK_STATES: dict[str, WorkState] = {
    JobState.QUEUED: "queued",
    JobState.RUNNING: "running",
    JobState.EVALUATING: "running",
    JobState.SUCCEEDED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
FINAL_WORK_STATES: frozenset[WorkState] = frozenset({"succeeded", "failed", "cancelled"})


class Body(BaseModel):
    """Base of accepted bodies: unknown members are refused, not ignored."""

    model_config = ConfigDict(extra="forbid")


def example(**members: Any) -> dict[str, Any]:
    """The `json_schema_extra` that shows one example."""
    return {"examples": [members]}


class Fault(BaseModel):
    """Why something that was uploaded is refused."""

    code: str = Field(description="Stable name of the broken rule.")
    detail: str
    shard: str | None = Field(default=None, description="The shard it was found in, if any.")


class Progress(BaseModel):
    """Where a running job is. Times in seconds.

    Steps and speed are for the model's owner: with them one could reckon how many samples train.
    """

    phase: str
    epoch: int
    epochs: int
    step: int | None = None
    steps: int | None = None
    losses: dict[str, float]
    images_per_second: float | None = None
    eta_seconds: float
