"""The answers as typed, frozen objects; members that a newer service adds are kept, not refused."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["operator", "model_owner", "data_owner", "auditor"]
Level = Literal["encoder", "projector"]
Which = Literal["before", "after", "gap"]

FINAL_DATASET_STATES = frozenset({"sealed", "invalid"})
FINAL_CHECKPOINT_STATES = frozenset({"ready", "invalid"})
FINAL_REQUEST_STATES = frozenset({"completed", "failed", "cancelled", "rejected"})
FINAL_JOB_STATES = frozenset({"succeeded", "failed", "cancelled"})
FINAL_AUDIT_STATES = frozenset({"succeeded", "failed"})
FINAL_COMPARISON_STATES = FINAL_AUDIT_STATES


class Resource(BaseModel):
    """One answer of the service."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Party(Resource):
    """Who acts: an operator, model owner, data owner or auditor."""

    id: str
    name: str
    role: Role
    created_at: datetime


class KeyInfo(Resource):
    """The key in use, without its secret."""

    id: str
    expires_at: datetime | None


class Me(Resource):
    """Whose key this is."""

    party: Party
    key: KeyInfo


class Key(Resource):
    """A new key; `secret` is shown this once."""

    id: str
    party_id: str
    secret: str
    created_at: datetime
    expires_at: datetime | None


class Method(Resource):
    """An unlearning method; `parameters` is a JSON schema with defaults and bounds."""

    id: str
    title: str
    summary: str
    source: str
    frameworks: list[str]
    parameters: dict[str, Any]


class Fault(Resource):
    """Why an upload was found invalid."""

    code: str
    detail: str
    shard: str | None = None


class Shard(Resource):
    """One uploaded tar file; `digest` is `sha256:<hex>`."""

    name: str
    digest: str
    bytes: int
    samples: int


class Dataset(Resource):
    """A data set; `digest` is fixed by sealing, `granted_to` is shown to the owner only."""

    id: str
    owner_id: str
    name: str
    state: str
    problem: Fault | None = None
    samples: int
    bytes: int
    digest: str | None = None
    shards: list[Shard] = []
    granted_to: list[str] | None = None
    created_at: datetime
    sealed_at: datetime | None = None


class SampleInfo(Resource):
    """The index entry of one sealed sample; sizes in pixels and bytes."""

    key: str
    shard: str
    sha256: str
    width: int
    height: int
    label: int | None = None
    caption: str | None = None
    size: int


class Model(Resource):
    """A model; to data owners whose data trained it only the first members are shown."""

    id: str
    owner_id: str
    name: str
    created_at: datetime
    framework: str | None = None
    encoder: dict[str, Any] | None = None
    head_checkpoint_id: str | None = None
    control_dataset_id: str | None = None
    policy: dict[str, Any] | None = None


class Checkpoint(Resource):
    """Stored weights; `release_digest` is that of the part that may leave the house."""

    id: str
    model_id: str
    parent_id: str | None = None
    job_id: str | None = None
    state: str
    problem: Fault | str | None = None
    digest: str | None = None
    release_digest: str | None = None
    bytes: int | None = None
    trained_on: list[str] = []
    forgotten: list[str] = []
    is_head: bool = False
    created_at: datetime


class Progress(Resource):
    """How far a training run is; `eta_seconds` is the estimate of what is left.

    Steps and speed are told to the model's owner only.
    """

    phase: str
    epoch: int
    epochs: int
    step: int | None = None
    steps: int | None = None
    losses: dict[str, float]
    images_per_second: float | None = None
    eta_seconds: float


class Outcome(Resource):
    """What a completed request led to."""

    before_checkpoint_id: str
    before_digest: str
    checkpoint_id: str
    digest: str
    seconds: float


class RemovalRequest(Resource):
    """A request to make a model forget data sets; `params` are complete, defaults included."""

    id: str
    owner_id: str
    model_id: str
    dataset_ids: list[str]
    method: str
    params: dict[str, Any]
    state: str
    reason: str | None = None
    progress: Progress | None = None
    result: Outcome | None = None
    created_at: datetime
    updated_at: datetime


class Job(Resource):
    """A training run, pre-training or unlearning; `metrics` is filled when it has succeeded."""

    id: str
    kind: str
    model_id: str
    state: str
    reason: str | None = None
    method: str | None = None
    params: dict[str, Any] = {}
    seed: int | None = None
    attempt: int = 0
    progress: Progress | None = None
    metrics: dict[str, Any] | None = None
    base_checkpoint_id: str | None = None
    result_checkpoint_id: str | None = None
    request_ids: list[str] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class StateChange(Resource):
    """An event: the watched request or job reached a state."""

    state: str
    reason: str | None = None
    at: datetime


class End(Resource):
    """The last event: nothing follows, `state` is final."""

    state: str


Event = StateChange | Progress | End
