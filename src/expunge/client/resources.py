"""The answers as typed, frozen objects; members that a newer service adds are kept, not refused."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["operator", "model_owner", "data_owner", "auditor"]
Scope = Literal["read", "write", "audit", "keys"]
Level = Literal["encoder", "projector", "image_text"]
Which = Literal["before", "after", "gap"]
Picture = Literal["before", "after", "gap", "triptych", "scores"]

# Not being sealed: a data set is open again if the check itself failed.
SETTLED_DATASET_STATES = frozenset({"open", "sealed", "invalid"})
FINAL_CHECKPOINT_STATES = frozenset({"ready", "invalid"})
FINAL_REQUEST_STATES = frozenset({"completed", "failed", "cancelled", "rejected"})
FINAL_JOB_STATES = frozenset({"succeeded", "failed", "cancelled"})
FINAL_AUDIT_STATES = frozenset({"succeeded", "failed", "cancelled"})
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
    """The key in use, without its secret; `scopes` says what it is for."""

    id: str
    expires_at: datetime | None
    scopes: list[str]


class Storage(Resource):
    """What a party has stored of what it may store; a limit of None is none."""

    used_bytes: int
    limit_bytes: int | None = None


class Me(Resource):
    """Whose key this is, and what the party has stored."""

    party: Party
    key: KeyInfo
    storage: Storage | None = None


class Key(Resource):
    """A new key; `secret` is shown this once."""

    id: str
    party_id: str
    secret: str
    scopes: list[str]
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


class Upload(Resource):
    """Where to send a shard: a PUT to `url` with all `headers`, then complete it; both until `expires_at`."""

    id: str
    name: str
    bytes: int
    sha256: str
    method: Literal["PUT"]
    url: str
    headers: dict[str, str]
    expires_at: datetime


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
    deleted_at: datetime | None = None


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


class Drift(Resource):
    """What removals since the last full training add up to; `reasons` for a retrain, if it is advised."""

    jobs: int
    forgotten_samples: int
    trained_samples: int
    forgotten_share: float
    utility_lost: float
    alignment_drift: float
    retrain_advised: bool
    reasons: list[str]


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
    drift: Drift | None = None


class Checkpoint(Resource):
    """Stored weights; `release_digest` is that of the part that may leave the house."""

    id: str
    model_id: str
    parent_id: str | None = None
    job_id: str | None = None
    state: str
    problem: Fault | str | None = None
    digest: str | None = None
    release_digest: str
    bytes: int | None = None
    trained_on: list[str] = []
    forgotten: list[str] = []
    is_head: bool = False
    drift: Drift | None = None
    created_at: datetime
    promoted_at: datetime | None = None
    destroyed_at: datetime | None = None


class Ancestry(Resource):
    """A checkpoint's place in its model's history; `reason` says why one cannot go to it."""

    id: str
    parent_id: str | None = None
    job_id: str | None = None
    state: str
    made_at: datetime
    promoted_at: datetime | None = None
    destroyed_at: datetime | None = None
    is_head: bool
    trained_datasets: int
    forgotten_datasets: int
    problem: Fault | None = None
    drift: Drift
    promotable: bool
    reason: str | None = None


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
    finished_at: datetime | None = None
    deadline_at: datetime
    overdue: bool
    effective_at: datetime | None = None
    exposure_seconds: float | None = None
    """From the request until a head without the data was in force, or until now; None if it ended without."""
    protocol_audit_id: str | None = None
    """The service's own audit, by the protocol fixed when the request was made."""
    alerts: int = 0


class Residue(Resource):
    """One thing that still holds something of a request's data, or `count` alike.

    `id` is None where the caller is not to know it; it goes at `until`, or under `condition`.
    """

    what: str
    id: str | None = None
    digest: str | None = None
    count: int = 1
    where: str
    state: str
    why: str
    until: datetime | None = None
    condition: str | None = None


class Failure(Resource):
    """How the last attempt that did not end well ended; `words` are the last that was heard of it."""

    kind: str
    reason: str
    words: str
    attempt: int
    step: int
    crashes: int | None = None
    recompute: bool = False


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
    priority: int = 0
    attempt: int = 0
    outages: int = 0
    worker: str | None = None
    failure: Failure | None = None
    snapshot_step: int | None = None
    seconds_used: float = 0.0
    progress: Progress | None = None
    metrics: dict[str, Any] | None = None
    base_checkpoint_id: str | None = None
    result_checkpoint_id: str | None = None
    request_ids: list[str] = []
    created_at: datetime
    due_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    waiting_for: str | None = None


class LogEntry(Resource):
    """One thing that happened to a request or a job; `actor` is `you`, `model owner`, `service` or a party's id."""

    position: int
    at: datetime
    actor: str
    event: str
    reason: str | None = None
    kind: str | None = None
    words: str | None = None
    attempt: int | None = None
    worker: str | None = None
    priority: int | None = None
    memory: str | None = None


class Alert(Resource):
    """A later head seems to know a request's samples again; `sentence` says why."""

    id: str
    request_id: str
    model_id: str
    checkpoint_id: str
    kind: str
    sentence: str
    p: float
    alpha: float
    level: str
    levels: dict[str, dict[str, Any]]
    n_own: int
    n_control: int
    created_at: datetime
    acknowledged_at: datetime | None = None


class Span(Resource):
    """Seconds, to two significant digits."""

    expected: float
    low: float
    high: float


class Cost(Resource):
    """At the operator's price of a device's hour."""

    amount: float
    currency: str


class Estimate(Resource):
    """What one method would take; `seconds` is None where nothing comparable was ever run."""

    method: str
    params: dict[str, Any]
    seconds: Span | None = None
    waiting_seconds: float | None = None
    cost: Cost | None = None
    basis: str
    n_jobs: int | None = None


class StateChange(Resource):
    """An event: the watched request or job reached a state."""

    state: str
    reason: str | None = None
    at: datetime


class End(Resource):
    """The last event: nothing follows, `state` is final."""

    state: str


Event = StateChange | Progress | End
