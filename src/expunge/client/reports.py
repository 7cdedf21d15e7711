"""The numbers of an audit as typed objects; `expunge.unlearning.audit` says what they mean."""

from datetime import datetime

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


class ControlReport(Resource):
    """The same statistics over images that nobody asked to forget; aggregates only."""

    forgetting_score: ForgettingScore
    negative_alignment: NegativeAlignment | None = None


class Difference(Resource):
    """Own minus control, with the interval that decides."""

    difference: float | None
    interval: Interval | None = None
    adjusted_interval: Interval | None = None
    """Widened for the number of statistics that the verdict looks at."""


class Contrast(Resource):
    """Own against control, for both statistics."""

    forgetting_score: Difference | None = None
    negative_alignment_change: Difference | None = None


class LevelReport(Resource):
    """All statistics at one level, encoder features or projector outputs."""

    forgetting_score: ForgettingScore
    negative_alignment: NegativeAlignment | None = None
    control: ControlReport | None = None
    contrast: Contrast | None = None


class Verdict(Resource):
    """What the intervals say, as a stable code and as a sentence."""

    code: str
    sentence: str


class AuditReport(Resource):
    """The whole report, by level."""

    levels: dict[str, LevelReport]
    n_own: int
    n_control: int | None = None
    views: int
    seed: int
    confidence: float
    verdict: Verdict


class AuditedCheckpoint(Resource):
    """The checkpoint on one side of the comparison."""

    checkpoint_id: str
    digest: str


class Audit(Resource):
    """An audit of the caller's own samples over one completed request."""

    id: str
    request_id: str
    dataset_ids: list[str]
    matrix_size: int
    views: int
    seed: int
    state: str
    reason: str | None = None
    report: AuditReport | None = None
    before: AuditedCheckpoint | None = None
    after: AuditedCheckpoint | None = None
    pictures: dict[str, dict[str, str]] | None = None
    created_at: datetime
    finished_at: datetime | None = None
