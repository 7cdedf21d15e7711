"""The numbers of an audit as typed objects; `expunge.evidence.audit` says what they mean."""

from datetime import datetime
from typing import Any

from expunge.client.resources import Resource

Interval = tuple[float, float]


class ForgettingScore(Resource):
    """FS over the samples: mean, standard deviation over samples, interval of the mean."""

    mean: float
    std: float | None
    interval: Interval | None
    n: int
    per_sample: dict[str, float] | None = None
    """By sample key; own samples only."""


class Estimate(Resource):
    """A mean with its interval; null where there are too few samples for one."""

    mean: float | None
    std: float | None = None
    interval: Interval | None = None


class NegativeAlignment(Resource):
    """The matrices' off-diagonal mean before and after, and the change between them."""

    before: Estimate
    after: Estimate
    change: Estimate


class GroupReport(Resource):
    """The same statistics over images of others; aggregates only."""

    forgetting_score: ForgettingScore
    negative_alignment: NegativeAlignment | None = None


class Difference(Resource):
    """Own minus control, with its interval."""

    difference: float | None
    interval: Interval | None = None


class Contrast(Resource):
    """Own against control, for both statistics."""

    forgetting_score: Difference | None = None
    negative_alignment_change: Difference | None = None


class LevelReport(Resource):
    """All statistics at one level: encoder features, projector outputs, images against captions."""

    forgetting_score: ForgettingScore
    negative_alignment: NegativeAlignment | None = None
    retained: GroupReport | None = None
    """Images that the model kept."""
    control: GroupReport | None = None
    """Images that it never saw."""
    contrast: Contrast | None = None


class Look(Resource):
    """One statistic of the test; `p` is of it alone, not adjusted for there being others."""

    level: str
    statistic: str
    value: float
    p: float


class Test(Resource):
    """Own samples among draws from own and retained ones."""

    hypothesis: str
    alpha: float
    p: float
    p_used: float | None = None
    """Without the projector; none in reports of earlier versions."""
    alpha_used: float | None = None
    n: int
    n_reference: int
    n_alike: int
    """Of the reference, those of the own samples' kinds, which the draws are from; down to a multiple of 8."""
    draws: int
    reference: str
    looks: list[Look]


class Power(Resource):
    """How often this audit would find an exact retrain, and how many samples would do better."""

    power: float
    target: float
    samples_needed: int | None = None


class Membership(Resource):
    """Whether own samples still look trained on, after."""

    p: float
    difference: dict[str, float]


class Subset(Resource):
    """Which samples were audited: how many, and a digest of their images' digests."""

    samples: int
    digest: str


class Protocol(Resource):
    """What somebody needs who repeats the audit."""

    subset: Subset
    views: int
    seed: int
    matrix_size: int
    before: str
    after: str
    code: str


class Verdict(Resource):
    """What the test supports, as a stable code and as a sentence."""

    code: str
    sentence: str


class AuditReport(Resource):
    """The whole report, by level."""

    levels: dict[str, LevelReport]
    n_own: int
    n_retained: int = 0
    n_control: int = 0
    views: int
    seed: int
    confidence: float
    verdict: Verdict
    test: Test | None = None
    power: Power | None = None
    membership: Membership | None = None
    protocol: Protocol | None = None


class AuditedCheckpoint(Resource):
    """The checkpoint on one side of the comparison."""

    checkpoint_id: str
    digest: str


class Audit(Resource):
    """An audit of the caller's own samples over one completed request."""

    id: str
    request_id: str
    purpose: str = "asked"
    """Or `protocol`, `later_head`: by the service itself."""
    dataset_ids: list[str]
    sample_keys: list[str] | None = None
    draw: dict[str, int] | None = None
    matrix_size: int
    views: int
    seed: int
    state: str
    reason: str | None = None
    report: AuditReport | None = None
    before: AuditedCheckpoint | None = None
    after: AuditedCheckpoint | None = None
    pictures: dict[str, dict[str, str]] | None = None
    page: str | None = None
    created_at: datetime
    finished_at: datetime | None = None

    def as_told(self) -> dict[str, Any]:
        """As the service told it, member by member: certificates hold the digest of the report."""
        return self.model_dump(mode="json", exclude_unset=True)
